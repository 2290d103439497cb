#include "memory.h"

#include <fstream>
#include <string>

#include "error.h"

namespace tlc {

namespace {

int64_t from_status(const std::string& field) {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word) {
    if (word != field + ":") continue;
    int64_t kib = 0;
    if (status >> kib) return kib * 1024;
  }
  throw Error("/proc/self/status has no " + field, "Measure on a Linux system that reports it.");
}

}  // namespace

int64_t resident_bytes() { return from_status("VmRSS"); }

// Not getrusage: its ru_maxrss starts at the peak of the process that launched this one.
int64_t peak_resident_bytes() { return from_status("VmHWM"); }

}  // namespace tlc
