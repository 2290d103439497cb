#include "json.h"

#include <locale.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "error.h"

namespace tlc {

namespace {

constexpr int kMaxLevels = 100;
constexpr size_t kMaxValues = 1000000;     // about 300 MB when parsed
constexpr size_t kMaxPathBytes = 120;      // of a value's place in messages
constexpr double kMaxInteger = 1LL << 53;  // beyond, not every whole number is a double

// While it lives, this thread reads and writes numbers with a point, whatever language an application has set.
class PointLocale {
 public:
  PointLocale() : before_(uselocale(point())) {}
  ~PointLocale() { uselocale(before_); }
  PointLocale(const PointLocale&) = delete;
  PointLocale& operator=(const PointLocale&) = delete;

 private:
  static locale_t point() {
    static const locale_t locale = newlocale(LC_ALL_MASK, "C", nullptr);
    return locale;
  }

  const locale_t before_;
};

// Return the length of the valid UTF-8 sequence that starts at `at`, or 0.
size_t sequence_length(const std::string& text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(at);
  const size_t length = first < 0x80                     ? 1
                        : first >= 0xC2 && first < 0xE0  ? 2
                        : first >= 0xE0 && first < 0xF0  ? 3
                        : first >= 0xF0 && first <= 0xF4 ? 4
                                                         : 0;
  if (length == 0 || at + length > text.size()) return 0;
  for (size_t i = at + 1; i < at + length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  if (length < 3) return length;
  // Overlong forms, surrogates, and code points above U+10FFFF.
  const unsigned char second = byte(at + 1);
  const bool invalid = (first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) ||
                       (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F);
  return invalid ? 0 : length;
}

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

// Return where the value `step` of the value at `path` is; a long place keeps its end.
std::string joined(const std::string& path, const std::string& step) {
  std::string out = path + step;
  if (out.size() > kMaxPathBytes) out = "..." + out.substr(out.size() - kMaxPathBytes);
  return out;
}

std::string member_path(const std::string& path, const std::string& key) {
  return joined(path, (path.empty() ? "" : ".") + key);
}

Error wrong_value(const std::string& path, const std::string& problem) {
  return Error((path.empty() ? "the JSON" : path) + " " + problem, "Write it again with tlc " TLC_VERSION ".");
}

void require(const Json& value, const std::string& path, Json::Kind kind) {
  if (value.kind() == kind) return;
  throw wrong_value(path, std::string("must be ") + kind_name(kind) + ", not " + kind_name(value.kind()));
}

}  // namespace

class JsonParser {
 public:
  explicit JsonParser(const std::string& text) : text_(text) {}

  Json parse() {
    Json value = this->value("", 0);
    skip_spaces();
    if (at_ != text_.size()) fail("text after the value");
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string& problem) const {
    const auto line = std::count(text_.begin(), text_.begin() + static_cast<std::ptrdiff_t>(at_), '\n') + 1;
    const size_t start = at_ == 0 ? std::string::npos : text_.rfind('\n', at_ - 1);
    const size_t column = start == std::string::npos ? at_ + 1 : at_ - start;
    throw Error("not JSON: " + problem + " at line " + std::to_string(line) + ", column " + std::to_string(column),
                "Check that the text is complete and was not edited.");
  }

  void skip_spaces() { at_ = std::min(text_.find_first_not_of(" \t\n\r", at_), text_.size()); }

  // The next character; NUL, which is valid nowhere outside of strings, at the end.
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  bool taken(char character) {
    if (peek() != character) return false;
    ++at_;
    return true;
  }

  Json value(const std::string& path, int level) {
    skip_spaces();
    if (++values_ > kMaxValues) fail("more than " + std::to_string(kMaxValues) + " values");
    Json value;
    value.path_ = path;
    const char first = peek();
    if (first == '{' || first == '[') {
      if (level == kMaxLevels) fail("more than " + std::to_string(kMaxLevels) + " levels");
      first == '{' ? object(value, level) : array(value, level);
    } else if (first == '"') {
      value.kind_ = Json::Kind::kString;
      value.string_ = string();
    } else if (first == '-' || (first >= '0' && first <= '9')) {
      value.kind_ = Json::Kind::kNumber;
      value.number_ = number();
    } else {
      word(value);
    }
    return value;
  }

  void word(Json& value) {
    for (const char* const name : {"null", "true", "false"}) {
      if (text_.compare(at_, std::strlen(name), name) != 0) continue;
      at_ += std::strlen(name);
      value.kind_ = *name == 'n' ? Json::Kind::kNull : Json::Kind::kBool;
      value.boolean_ = *name == 't';
      return;
    }
    fail("no value");
  }

  void array(Json& value, int level) {
    value.kind_ = Json::Kind::kArray;
    ++at_;
    skip_spaces();
    if (taken(']')) return;
    while (true) {
      const std::string step = "[" + std::to_string(value.array_.size()) + "]";
      value.array_.push_back(this->value(joined(value.path_, step), level + 1));
      skip_spaces();
      if (taken(']')) return;
      if (!taken(',')) fail("neither , nor ]");
    }
  }

  void object(Json& value, int level) {
    value.kind_ = Json::Kind::kObject;
    ++at_;
    skip_spaces();
    if (taken('}')) return;
    while (true) {
      skip_spaces();
      if (peek() != '"') fail("no key");
      std::string key = string();
      skip_spaces();
      if (!taken(':')) fail("no :");
      const std::string path = member_path(value.path_, key);
      value.object_.emplace_back(std::move(key), this->value(path, level + 1));
      skip_spaces();
      if (taken('}')) break;
      if (!taken(',')) fail("neither , nor }");
    }
    check_keys_differ(value);
  }

  void check_keys_differ(const Json& value) const {
    std::vector<const std::string*> keys;
    for (const auto& member : value.object_) keys.push_back(&member.first);
    std::sort(keys.begin(), keys.end(), [](const auto* a, const auto* b) { return *a < *b; });
    const auto same =
        std::adjacent_find(keys.begin(), keys.end(), [](const auto* a, const auto* b) { return *a == *b; });
    if (same != keys.end()) fail("the key " + json_string(**same) + " twice in the object that ends");
  }

  double number() {
    const size_t start = at_;
    const auto digits = [this] {
      const size_t before = at_;
      while (peek() >= '0' && peek() <= '9') ++at_;
      if (at_ == before) fail("no digit");
    };
    taken('-');
    if (!taken('0')) digits();
    if (taken('.')) digits();
    if (taken('e') || taken('E')) {
      if (!taken('+')) taken('-');
      digits();
    }
    const PointLocale point;
    const double value = std::strtod(text_.substr(start, at_ - start).c_str(), nullptr);
    if (!std::isfinite(value)) fail("a number too large for a double");
    return value;
  }

  std::string string() {
    std::string out;
    ++at_;
    while (true) {
      if (at_ == text_.size()) fail("a string without end");
      const char character = text_[at_];
      if (taken('"')) return out;
      if (taken('\\')) {
        escape(out);
        continue;
      }
      if (static_cast<unsigned char>(character) < 0x20) fail("a control character in a string");
      const size_t length = sequence_length(text_, at_);
      if (length == 0) fail("bytes that are not UTF-8");
      out.append(text_, at_, length);
      at_ += length;
    }
  }

  void escape(std::string& out) {
    static const char kFrom[] = "\"\\/bfnrt";
    static const char kTo[] = "\"\\/\b\f\n\r\t";
    const char* const found = peek() == '\0' ? nullptr : std::strchr(kFrom, peek());
    if (found != nullptr) {
      out += kTo[found - kFrom];
      ++at_;
      return;
    }
    if (!taken('u')) fail("an unknown escape");
    uint32_t code = hex4();
    if (code >= 0xDC00 && code <= 0xDFFF) fail("half of a surrogate pair before this");
    if (code >= 0xD800 && code <= 0xDBFF) {
      const uint32_t low = taken('\\') && taken('u') ? hex4() : 0;
      if (low < 0xDC00 || low > 0xDFFF) fail("half of a surrogate pair before this");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    append_utf8(out, code);
  }

  uint32_t hex4() {
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char digit = peek();
      const int value = digit >= '0' && digit <= '9'   ? digit - '0'
                        : digit >= 'a' && digit <= 'f' ? digit - 'a' + 10
                        : digit >= 'A' && digit <= 'F' ? digit - 'A' + 10
                                                       : -1;
      if (value < 0) fail("no hexadecimal digit");
      code = code * 16 + static_cast<uint32_t>(value);
    }
    return code;
  }

  const std::string& text_;
  size_t at_ = 0;
  size_t values_ = 0;
};

Json Json::parse(const std::string& text) { return JsonParser(text).parse(); }

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

void append_utf8(std::string& out, uint32_t code) {
  if (code < 0x80) {
    out += static_cast<char>(code);
    return;
  }
  const int following = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  const uint32_t lead = following == 1 ? 0xC0 : following == 2 ? 0xE0 : 0xF0;
  out += static_cast<char>(lead | code >> (6 * following));
  for (int i = following - 1; i >= 0; --i) out += static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3F));
}

std::string json_string(const std::string& text) {
  std::string out = "\"";
  for (size_t at = 0; at < text.size();) {
    const size_t length = sequence_length(text, at);
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
