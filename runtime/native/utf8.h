// UTF-8 (RFC 3629).
#ifndef TLC_NATIVE_UTF8_H_
#define TLC_NATIVE_UTF8_H_

#include <cstddef>
#include <cstdint>
#include <string>

namespace tlc {

// Return the length of the valid sequence that starts at `at`, which is within `text`, or 0.
size_t utf8_length(const std::string& text, size_t at);

// Append the code point, which must be below 0x110000.
void append_utf8(std::string& out, uint32_t code);

}  // namespace tlc

#endif  // TLC_NATIVE_UTF8_H_
