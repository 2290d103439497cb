// CRC-32 of zip files, APPNOTE.TXT 6.3.10, 4.4.7.
#ifndef TLC_NATIVE_CRC32_H_
#define TLC_NATIVE_CRC32_H_

#include <cstddef>
#include <cstdint>

namespace tlc {

class Crc32 {
 public:
  void update(const void* data, size_t size_bytes);
  uint32_t value() const { return ~value_; }

 private:
  uint32_t value_ = 0xFFFFFFFF;
};

}  // namespace tlc

#endif  // TLC_NATIVE_CRC32_H_
