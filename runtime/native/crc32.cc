#include "crc32.h"

namespace tlc {

namespace {

// values[k][b] is the checksum of byte b followed by k zeros, so that four bytes take one step.
struct Tables {
  Tables() {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      uint32_t value = byte;
      for (int bit = 0; bit < 8; ++bit) value = (value & 1) != 0 ? 0xEDB88320 ^ value >> 1 : value >> 1;
      values[0][byte] = value;
    }
    for (int zeros = 1; zeros < 4; ++zeros) {
      for (int byte = 0; byte < 256; ++byte) {
        const uint32_t before = values[zeros - 1][byte];
        values[zeros][byte] = values[0][before & 0xFF] ^ before >> 8;
      }
    }
  }

  uint32_t values[4][256];
};

}  // namespace

void Crc32::update(const void* data, size_t size_bytes) {
  static const Tables tables;
  const auto& t = tables.values;
  const auto* at = static_cast<const unsigned char*>(data);
  for (; size_bytes >= 4; size_bytes -= 4, at += 4) {
    value_ ^= uint32_t{at[0]} | uint32_t{at[1]} << 8 | uint32_t{at[2]} << 16 | uint32_t{at[3]} << 24;
    value_ = t[3][value_ & 0xFF] ^ t[2][value_ >> 8 & 0xFF] ^ t[1][value_ >> 16 & 0xFF] ^ t[0][value_ >> 24];
  }
  for (; size_bytes > 0; --size_bytes, ++at) value_ = t[0][(value_ ^ *at) & 0xFF] ^ value_ >> 8;
}

}  // namespace tlc
