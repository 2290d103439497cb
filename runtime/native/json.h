// The little of JSON that a report needs.
#ifndef TLC_NATIVE_JSON_H_
#define TLC_NATIVE_JSON_H_

#include <string>

namespace tlc {

// Return `text` in quotes, escaped. Bytes that are not valid UTF-8 become U+FFFD, so the result always parses.
std::string json_string(const std::string& text);

// Return the shortest decimal that reads back as `value`; `value` must be finite.
std::string json_number(double value);

}  // namespace tlc

#endif  // TLC_NATIVE_JSON_H_
