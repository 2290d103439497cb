// Any text is JSON that can be walked and written again, or an Error.

#include <cstdlib>
#include <string>

#include "error.h"
#include "json.h"

namespace {

std::string written(const tlc::Json& json) {
  std::string out;
  switch (json.kind()) {
    case tlc::Json::Kind::kNull:
      return "null";
    case tlc::Json::Kind::kBool:
      return json.boolean() ? "true" : "false";
    case tlc::Json::Kind::kNumber:
      return tlc::json_number(json.number());
    case tlc::Json::Kind::kString:
      return tlc::json_string(json.string());
    case tlc::Json::Kind::kArray:
      for (const tlc::Json& element : json.array()) out += (out.empty() ? "" : ",") + written(element);
      return "[" + out + "]";
    case tlc::Json::Kind::kObject:
      break;
  }
  for (const auto& member : json.object()) {
    if (&json.at(member.first) != &member.second) abort();
    out += (out.empty() ? "" : ",") + tlc::json_string(member.first) + ":" + written(member.second);
  }
  return "{" + out + "}";
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size_bytes) {
  tlc::Json json;
  try {
    json = tlc::Json::parse(std::string(data, data + size_bytes));
  } catch (const tlc::Error&) {
    return 0;
  }
  const std::string text = written(json);
  if (written(tlc::Json::parse(text)) != text) abort();  // what was read once is read the same again
  try {
    json.at("a").integer();
  } catch (const tlc::Error&) {
  }
  return 0;
}
