#include "json.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "error.h"
#include "point_locale.h"
#include "utf8.h"

namespace tlc {

namespace {

constexpr size_t kMaxPathBytes = 120;      // of a value's place in messages
constexpr double kMaxInteger = 1LL << 53;  // beyond, not every whole number is a double

std::string escaped(char character) {
  switch (character) {
    case '"':
      return "\\\"";
    case '\\':
      return "\\\\";
    case '\n':
      return "\\n";
    case '\t':
      return "\\t";
    case '\r':
      return "\\r";
    default:
      break;
  }
  if (static_cast<unsigned char>(character) >= 0x20) return std::string(1, character);
  char buffer[8];
  std::snprintf(buffer, sizeof buffer, "\\u%04x", static_cast<unsigned>(character));
  return buffer;
}

const char* kind_name(Json::Kind kind) {
  switch (kind) {
    case Json::Kind::kNull:
      return "null";
    case Json::Kind::kBool:
      return "a boolean";
    case Json::Kind::kNumber:
      return "a number";
    case Json::Kind::kString:
      return "a string";
    case Json::Kind::kArray:
      return "an array";
    case Json::Kind::kObject:
      break;
  }
  return "an object";
}

Error wrong_value(const std::string& path, const std::string& problem) {
  return Error((path.empty() ? "the JSON" : path) + " " + problem, "Write it again with tlc " TLC_VERSION ".");
}

void require(const Json& value, const std::string& path, Json::Kind kind) {
  if (value.kind() == kind) return;
  throw wrong_value(path, std::string("must be ") + kind_name(kind) + ", not " + kind_name(value.kind()));
}

}  // namespace

std::string Json::joined(const std::string& path, const std::string& step) {
  std::string out = path + step;
  if (out.size() > kMaxPathBytes) out = "..." + out.substr(out.size() - kMaxPathBytes);
  return out;
}

std::string Json::member_path(const std::string& path, const std::string& key) {
  return joined(path, (path.empty() ? "" : ".") + key);
}

bool Json::boolean() const {
  require(*this, path_, Kind::kBool);
  return boolean_;
}

double Json::number() const {
  require(*this, path_, Kind::kNumber);
  return number_;
}

int64_t Json::integer() const {
  require(*this, path_, Kind::kNumber);
  if (std::fabs(number_) > kMaxInteger || number_ != std::floor(number_)) {
    throw wrong_value(path_, "must be a whole number within 2^53, not " + json_number(number_));
  }
  return static_cast<int64_t>(number_);
}

const std::string& Json::string() const {
  require(*this, path_, Kind::kString);
  return string_;
}

const std::vector<Json>& Json::array() const {
  require(*this, path_, Kind::kArray);
  return array_;
}

const std::vector<std::pair<std::string, Json>>& Json::object() const {
  require(*this, path_, Kind::kObject);
  return object_;
}

const Json& Json::at(const std::string& key) const {
  for (const auto& member : object()) {
    if (member.first == key) return member.second;
  }
  throw wrong_value(member_path(path_, key), "is missing");
}

const Json* Json::find(const std::string& key) const {
  for (const auto& member : object()) {
    if (member.first == key) return member.second.is_null() ? nullptr : &member.second;
  }
  return nullptr;
}

std::string json_string(const std::string& text) {
  std::string out = "\"";
  for (size_t at = 0; at < text.size();) {
    const size_t length = utf8_length(text, at);
    if (length == 0) {
      out += "\\ufffd";
      ++at;
      continue;
    }
    out += length == 1 ? escaped(text[at]) : text.substr(at, length);
    at += length;
  }
  return out + "\"";
}

std::string json_number(double value) {
  const PointLocale point;
  char buffer[32];
  for (int digits = 15; digits <= 17; ++digits) {  // fewer digits are 15 with zeros, which %g leaves out
    std::snprintf(buffer, sizeof buffer, "%.*g", digits, value);
    if (std::strtod(buffer, nullptr) == value) break;
  }
  return buffer;
}

}  // namespace tlc
