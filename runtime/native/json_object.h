// Writing JSON: values by type, and objects whose keys stand in the order of adding.
#ifndef TLC_NATIVE_JSON_OBJECT_H_
#define TLC_NATIVE_JSON_OBJECT_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "json.h"

namespace tlc {

class JsonObject;

inline std::string json_value(bool value) { return value ? "true" : "false"; }
inline std::string json_value(int value) { return std::to_string(value); }
inline std::string json_value(int64_t value) { return std::to_string(value); }
inline std::string json_value(uint64_t value) { return std::to_string(value); }
inline std::string json_value(double value) { return json_number(value); }
inline std::string json_value(const std::string& value) { return json_string(value); }
inline std::string json_value(const char* value) { return json_string(value); }
inline std::string json_value(std::nullopt_t) { return "null"; }
inline std::string json_value(const JsonObject& value);

template <typename T>
std::string json_value(const std::optional<T>& value);
template <typename T>
std::string json_value(const std::map<std::string, T>& values);

template <typename T>
std::string json_value(const std::vector<T>& values) {
  std::string text;
  for (const T& value : values) text += (text.empty() ? "" : ", ") + json_value(value);
  return "[" + text + "]";
}

template <typename T>
std::string json_value(const std::optional<T>& value) {
  return value ? json_value(*value) : "null";
}

template <typename T>
std::string json_value(const std::map<std::string, T>& values) {
  std::string text;
  for (const auto& entry : values)
    text += (text.empty() ? "" : ", ") + json_string(entry.first) + ": " + json_value(entry.second);
  return "{" + text + "}";
}

class JsonObject {
 public:
  template <typename T>
  JsonObject& add(const std::string& key, const T& value) {
    members_.emplace_back(key, json_value(value));
    return *this;
  }

  // Return the text of a member's value; "null" where there is none.
  std::string value(const std::string& key) const {
    for (const auto& member : members_) {
      if (member.first == key) return member.second;
    }
    return "null";
  }

  // Add a member whose value is JSON already.
  JsonObject& add_json(const std::string& key, const std::string& json) {
    members_.emplace_back(key, json);
    return *this;
  }

  std::string text() const {
    std::string text;
    for (const auto& member : members_)
      text += (text.empty() ? "" : ", ") + json_string(member.first) + ": " + member.second;
    return "{" + text + "}";
  }

 private:
  std::vector<std::pair<std::string, std::string>> members_;
};

inline std::string json_value(const JsonObject& value) { return value.text(); }

}  // namespace tlc

#endif  // TLC_NATIVE_JSON_OBJECT_H_
