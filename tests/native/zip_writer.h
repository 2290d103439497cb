// Writes zip files for tests: stored members, and whatever a test wants to be wrong about them.
#ifndef TLC_TESTS_NATIVE_ZIP_WRITER_H_
#define TLC_TESTS_NATIVE_ZIP_WRITER_H_

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "crc32.h"

namespace check {

inline std::string little_endian(uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> (8 * i) & 0xFF);
  return out;
}

using Members = std::vector<std::pair<std::string, std::string>>;  // names and contents, in their order

// Return a zip file of `members`, as a bundle is laid out.
inline std::string zip_bytes(const Members& members) {
  std::string out, directory;
  for (const auto& [name, content] : members) {
    tlc::Crc32 crc;
    crc.update(content.data(), content.size());
    // Flags, method, time, the first of January 1980, CRC, sizes, lengths of the name and the extra field.
    const std::string both = little_endian(0, 6) + little_endian(0x21, 2) + little_endian(crc.value(), 4) +
                             little_endian(content.size(), 4) + little_endian(content.size(), 4) +
                             little_endian(name.size(), 2) + little_endian(0, 2);
    directory += little_endian(0x02014b50, 4) + little_endian(0x0314, 2) + little_endian(20, 2) + both +
                 little_endian(0, 6) + little_endian(0100644U << 16, 4) + little_endian(out.size(), 4) + name;
    out += little_endian(0x04034b50, 4) + little_endian(20, 2) + both + name + content;
  }
  const uint64_t start = out.size();
  return out + directory + little_endian(0x06054b50, 4) + little_endian(0, 4) + little_endian(members.size(), 2) +
         little_endian(members.size(), 2) + little_endian(directory.size(), 4) + little_endian(start, 4) +
         little_endian(0, 2);
}

// A file that lives in memory as long as this.
class MemoryFile {
 public:
  MemoryFile(const void* bytes, size_t size_bytes) : descriptor_(memfd_create("test", MFD_CLOEXEC)) {
    const char* from = static_cast<const char*>(bytes);
    while (size_bytes > 0) {
      const ssize_t written = write(descriptor_, from, size_bytes);
      if (written <= 0) abort();
      from += written;
      size_bytes -= static_cast<size_t>(written);
    }
  }
  explicit MemoryFile(const std::string& bytes) : MemoryFile(bytes.data(), bytes.size()) {}
  ~MemoryFile() { close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  const int descriptor_;
};

}  // namespace check

#endif  // TLC_TESTS_NATIVE_ZIP_WRITER_H_
