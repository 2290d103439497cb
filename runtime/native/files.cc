#include "files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "error.h"

namespace tlc {

namespace {

Error failure(const std::string& what, const std::string& path, int reason, const std::string& hint) {
  return Error(what + " " + path + ": " + std::strerror(reason), hint);
}

// Write everything and flush it to the disk; return 0, or errno.
int write_all(int file, const std::string& bytes) {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t written = write(file, bytes.data() + done, bytes.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return errno;
    done += static_cast<size_t>(written);
  }
  return fsync(file) == 0 ? 0 : errno;
}

}  // namespace

std::string read_file(const std::string& path) {
  constexpr char kHint[] = "Check the path.";
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw failure("cannot read", path, errno, kHint);
  std::string bytes;
  char piece[1 << 16];
  ssize_t count = 0;
  while ((count = read(file, piece, sizeof piece)) != 0) {
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) break;
    bytes.append(piece, static_cast<size_t>(count));
  }
  const int reason = count < 0 ? errno : 0;
  close(file);
  if (reason != 0) throw failure("cannot read", path, reason, kHint);
  return bytes;
}

void replace_file(const std::string& path, const std::string& bytes) {
  const std::string beside = path + "." + std::to_string(getpid()) + ".part";
  const int file = open(beside.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (file < 0) throw failure("cannot write", path, errno, "Check the folder and its permissions.");
  int reason = write_all(file, bytes);
  if (close(file) != 0 && reason == 0) reason = errno;
  if (reason == 0 && std::rename(beside.c_str(), path.c_str()) != 0) reason = errno;
  if (reason == 0) return;
  unlink(beside.c_str());
  throw failure("cannot write", path, reason,
                reason == ENOSPC ? "Make room: " + std::to_string(bytes.size()) + " bytes are needed."
                                 : "Check the folder and its permissions.");
}

void make_folders(const std::string& path) {
  for (size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
    const std::string folder = path.substr(0, end);
    if (!folder.empty() && mkdir(folder.c_str(), 0755) != 0 && errno != EEXIST) {
      throw failure("cannot make the folder", folder, errno, "Check the path and its permissions.");
    }
    if (end == std::string::npos) return;
  }
}

}  // namespace tlc
