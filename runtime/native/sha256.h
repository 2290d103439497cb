// SHA-256, FIPS 180-4.
#ifndef TLC_NATIVE_SHA256_H_
#define TLC_NATIVE_SHA256_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace tlc {

class Sha256 {
 public:
  Sha256();
  void update(const void* data, size_t size_bytes);
  std::string hex();  // 64 digits; ends the computation

 private:
  void block(const unsigned char* data);

  std::array<uint32_t, 8> state_;
  std::array<unsigned char, 64> pending_{};
  size_t pending_bytes_ = 0;
  uint64_t total_bytes_ = 0;
};

std::string sha256_hex(const std::string& bytes);

}  // namespace tlc

#endif  // TLC_NATIVE_SHA256_H_
