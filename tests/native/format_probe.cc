// Read files as tlc-run does: format_probe reads lines KIND<tab>PATH from stdin and answers each with one line of JSON,
// {"error": ...} for what it refuses. tests/native/test_formats.py compares the answers with Python's readers.

#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "bundle.h"
#include "error.h"
#include "json.h"
#include "npy.h"
#include "sha256.h"
#include "zip.h"

namespace {

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw tlc::Error("cannot read " + path, "Check the path.");
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::string field(const std::string& name, const std::string& value) { return tlc::json_string(name) + ": " + value; }

std::string array_text(const std::string& bytes) {
  if (bytes.find("'<U") != std::string::npos) {
    std::string names;
    for (const std::string& name : tlc::parse_npy_text(bytes)) {
      names += (names.empty() ? "" : ", ") + tlc::json_string(name);
    }
    return "{" + field("names", "[" + names + "]") + "}";
  }
  const tlc::Tensor tensor = tlc::parse_npy(bytes);
  std::string shape;
  for (const int64_t dim : tensor.shape) shape += (shape.empty() ? "" : ", ") + std::to_string(dim);
  const std::string values(tensor.bytes.begin(), tensor.bytes.end());
  return "{" + field("dtype", tlc::json_string(tlc::name_of(tensor.dtype))) + ", " + field("shape", "[" + shape + "]") +
         ", " + field("sha256", tlc::json_string(tlc::sha256_hex(values))) + "}";
}

std::string zip_text(const std::string& path) {
  const tlc::ZipFile zip(path);
  std::string members;
  for (const tlc::ZipMember& member : zip.members()) {
    members += (members.empty() ? "" : ", ") + field(member.name, tlc::json_string(tlc::sha256_hex(zip.read(member))));
  }
  return "{" + members + "}";
}

// Return the value as JSON again.
std::string json_text(const tlc::Json& json) {
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
      for (const tlc::Json& element : json.array()) out += (out.empty() ? "" : ", ") + json_text(element);
      return "[" + out + "]";
    case tlc::Json::Kind::kObject:
      break;
  }
  for (const auto& member : json.object())
    out += (out.empty() ? "" : ", ") + field(member.first, json_text(member.second));
  return "{" + out + "}";
}

std::string bundle_text(const std::string& path) {
  const tlc::Bundle bundle(path);
  bundle.verify();
  size_t pictures = 0;
  for (const tlc::Golden& sample : bundle.golden()) {
    pictures += sample.image.has_value() && bundle.preprocess().has_value() ? 1 : 0;
    for (const std::string& member : sample.inputs) bundle.read_tensor(member);
    for (const std::string& member : sample.outputs) bundle.read_tensor(member);
  }
  return "{" + field("name", tlc::json_string(bundle.name())) + ", " +
         field("runtime", tlc::json_string(bundle.runtime())) + ", " +
         field("threads", std::to_string(bundle.threads())) + ", " +
         field("golden", std::to_string(bundle.golden().size())) + ", " + field("pictures", std::to_string(pictures)) +
         ", " + field("files", std::to_string(bundle.file_count())) + ", " +
         field("model", tlc::json_string(tlc::sha256_hex(bundle.read(bundle.model())))) + "}";
}

std::string answer(const std::string& kind, const std::string& path) {
  if (kind == "sha256") return tlc::json_string(tlc::sha256_hex(read_file(path)));
  if (kind == "json") return json_text(tlc::Json::parse(read_file(path)));
  if (kind == "npy") return array_text(read_file(path));
  if (kind == "zip") return zip_text(path);
  if (kind == "bundle") return bundle_text(path);
  // An array, written anew by npy_bytes.
  if (kind == "rewrite") {
    const std::string bytes = tlc::npy_bytes(tlc::parse_npy(read_file(path)));
    std::ofstream(path, std::ios::binary) << bytes;
    return "null";
  }
  throw tlc::Error("unknown kind " + kind, "Use sha256, json, npy, zip, bundle or rewrite.");
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    const size_t tab = line.find('\t');
    try {
      std::cout << answer(line.substr(0, tab), line.substr(tab + 1)) << std::endl;
    } catch (const tlc::Error& error) {
      std::cout << "{" << field("error", tlc::json_string(error.what())) << "}" << std::endl;
    }
  }
  return 0;
}
