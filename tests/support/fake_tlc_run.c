/* Stands in for tlc-run on a device: runs $HOME/fake-tlc-run with its arguments, which says what the program does. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char** argv) {
  char path[4096];
  const char* home = getenv("HOME");
  (void)argc;
  snprintf(path, sizeof path, "%s/fake-tlc-run", home ? home : "");
  argv[0] = path;
  execv(path, argv);
  perror(path);
  return 127;
}
