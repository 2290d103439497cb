// JSON (RFC 8259): reading manifests and requests, and the little that writing reports needs.
#ifndef TLC_NATIVE_JSON_H_
#define TLC_NATIVE_JSON_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace tlc {

// A parsed value. Every accessor throws Error, naming the path such as "golden.samples[0].image", where the value is
// of another type or missing.
class Json {
 public:
  enum class Kind { kNull, kBool, kNumber, kString, kArray, kObject };

  Json() = default;

  // Parse text that is one value; throws Error with the place for anything else, for an object with a key twice, and
  // for more than 100 levels or 1,000,000 values, so that hostile text takes a bounded memory.
  static Json parse(const std::string& text);

  Kind kind() const { return kind_; }
  bool is_null() const { return kind_ == Kind::kNull; }

  bool boolean() const;
  double number() const;
  int64_t integer() const;  // a number without a fraction, within 2^53
  const std::string& string() const;
  const std::vector<Json>& array() const;
  const std::vector<std::pair<std::string, Json>>& object() const;  // in the order of the text

  const Json& at(const std::string& key) const;
  const Json* find(const std::string& key) const;  // null where the key is missing or its value is null

 private:
  friend class JsonParser;

  // Return where the value `step` of the value at `path` is; a long place keeps its end.
  static std::string joined(const std::string& path, const std::string& step);
  static std::string member_path(const std::string& path, const std::string& key);

  Kind kind_ = Kind::kNull;
  bool boolean_ = false;
  double number_ = 0;
  std::string string_;
  std::vector<Json> array_;
  std::vector<std::pair<std::string, Json>> object_;
  std::string path_;
};

// Return `text` in quotes, escaped. Bytes that are not valid UTF-8 become U+FFFD, so the result always parses.
std::string json_string(const std::string& text);

// Return the shortest decimal that reads back as `value`; `value` must be finite.
std::string json_number(double value);

}  // namespace tlc

#endif  // TLC_NATIVE_JSON_H_
