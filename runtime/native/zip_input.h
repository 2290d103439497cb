// The file that a zip is in: bytes at any place of it, by several threads at once.
#ifndef TLC_NATIVE_ZIP_INPUT_H_
#define TLC_NATIVE_ZIP_INPUT_H_

#include <cstddef>
#include <cstdint>
#include <string>

namespace tlc {

class ZipInput {
 public:
  // Throws Error for what is not a file that can be read.
  explicit ZipInput(const std::string& path);
  ~ZipInput();
  ZipInput(const ZipInput&) = delete;
  ZipInput& operator=(const ZipInput&) = delete;

  const std::string& path() const { return path_; }
  uint64_t size_bytes() const { return size_bytes_; }

  // Throw Error that says so of the file.
  [[noreturn]] void fail(const std::string& problem) const;

  // Fill `bytes` from `offset` on; throws Error where the file ends before.
  void read(uint64_t offset, void* bytes, size_t count) const;

  // Return `count` bytes from `offset` on; throws as read(), before memory is taken.
  std::string text(uint64_t offset, uint64_t count) const;

 private:
  const std::string path_;
  const int descriptor_;
  uint64_t size_bytes_ = 0;
};

}  // namespace tlc

#endif  // TLC_NATIVE_ZIP_INPUT_H_
