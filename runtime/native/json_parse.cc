#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "error.h"
#include "json.h"
#include "point_locale.h"
#include "utf8.h"

namespace tlc {

namespace {

constexpr int kMaxLevels = 100;
constexpr size_t kMaxValues = 1000000;  // about 300 MB when parsed

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
      value.array_.push_back(this->value(Json::joined(value.path_, step), level + 1));
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
      const std::string path = Json::member_path(value.path_, key);
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
      const size_t length = utf8_length(text_, at_);
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

}  // namespace tlc
