#include "memory.h"

#include <fstream>
#include <string>

namespace tlc {

// Not getrusage: its ru_maxrss starts at the peak of the process that launched this one.
std::optional<int64_t> peak_resident_bytes() {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word) {
    if (word != "VmHWM:") continue;
    int64_t kib = 0;
    if (status >> kib) return kib * 1024;
  }
  return std::nullopt;
}

}  // namespace tlc
