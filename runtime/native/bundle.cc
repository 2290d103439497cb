#include "bundle.h"

#include <algorithm>
#include <map>
#include <utility>

#include "error.h"
#include "npy.h"
#include "sha256.h"

namespace tlc {

namespace {

constexpr char kManifest[] = "manifest.json";
constexpr char kSignature[] = "manifest.json.sig";
constexpr uint64_t kMaxManifestBytes = 1 << 24;
constexpr int64_t kMaxThreads = 1024;
constexpr char kAgain[] = "It was damaged or altered: get the file again from its origin.";

bool is_name(const std::string& text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '-';
  });
}

// ZipFile has refused empty parts, "." and "..".
bool is_member_name(std::string text) {
  text.erase(std::remove(text.begin(), text.end(), '/'), text.end());
  return is_name(text);
}

Json read_manifest(const ZipFile& zip) {
  const bool first = !zip.members().empty() && zip.members().front().name == kManifest;
  if (!first) {
    throw Error("no bundle: it does not begin with " + std::string(kManifest), "Make one: tlc pack FOLDER -o NAME.tlc");
  }
  const ZipMember& member = zip.members().front();
  if (member.size_bytes > kMaxManifestBytes) {
    throw Error(std::string(kManifest) + " has " + std::to_string(member.size_bytes) + " bytes, above " +
                    std::to_string(kMaxManifestBytes),
                kAgain);
  }
  Json manifest = Json::parse(zip.read(member));
  const Json* const format = manifest.find("format");
  if (format == nullptr || format->kind() != Json::Kind::kString || format->string() != "tlc-bundle") {
    throw Error("no bundle: its manifest does not say so", "Make one: tlc pack FOLDER -o NAME.tlc");
  }
  const int64_t version = manifest.at("version").integer();
  if (version != 1) {
    throw Error("a bundle of version " + std::to_string(version) + "; tlc-run " TLC_VERSION " reads version 1",
                "Install a newer tlc-run, or pack it with an older tlc.");
  }
  return manifest;
}

// Members stand in one order, and the manifest lists each of them, so that nothing rides along unseen.
std::map<std::string, std::string> checked_files(const ZipFile& zip, const Json& manifest) {
  std::map<std::string, std::string> sha256;
  for (const auto& file : manifest.at("files").object()) {
    const std::string& name = file.first;
    if (!is_member_name(name) || name == kManifest || name == kSignature) {
      throw Error("the manifest lists " + json_string(name) + ", which is no name of a member", kAgain);
    }
    const ZipMember* const member = zip.find(name);
    if (member == nullptr) throw Error("the manifest lists " + name + ", which is not there", kAgain);
    const int64_t size_bytes = file.second.at("size_bytes").integer();
    if (size_bytes < 0 || member->size_bytes != static_cast<uint64_t>(size_bytes)) {
      throw Error(name + " has " + std::to_string(member->size_bytes) + " bytes, the manifest says " +
                      std::to_string(size_bytes),
                  kAgain);
    }
    sha256[name] = file.second.at("sha256").string();
  }
  auto listed = sha256.begin();
  for (const ZipMember& member : zip.members()) {
    if (member.name == kManifest || (member.name == kSignature && &member == &zip.members().back())) continue;
    if (sha256.count(member.name) == 0) throw Error(member.name + " is not in the manifest's list", kAgain);
    if (listed->first != member.name) throw Error("its members are in another order than sorted", kAgain);
    ++listed;
  }
  return sha256;
}

std::string one_of(const Json& value, const std::string& field, const std::vector<std::string>& known) {
  const std::string& text = value.string();
  if (std::find(known.begin(), known.end(), text) != known.end()) return text;
  std::string names;
  for (const std::string& name : known) names += (names.empty() ? "" : ", ") + name;
  throw Error(field + " is " + json_string(text) + ", not one of " + names, "Install a newer tlc-run.");
}

}  // namespace

// Every message begins with the file's path, wherever below it was thrown.
template <typename Call>
auto Bundle::naming_path(Call call) const -> decltype(call()) {
  try {
    return call();
  } catch (const Error& error) {
    const std::string message = error.what();
    if (message.find(path_) != std::string::npos) throw;
    throw Error(path_ + ": " + message, error.hint);
  }
}

Bundle::Bundle(const std::string& path) : path_(path), zip_(std::make_unique<ZipFile>(path)) {
  naming_path([this] {
    manifest_ = read_manifest(*zip_);
    sha256_ = checked_files(*zip_, manifest_);
    read_fields();
  });
}

void Bundle::read_fields() {
  name_ = manifest_.at("name").string();
  if (!is_name(name_)) throw Error("the name " + json_string(name_) + " has other letters than A-Za-z0-9._-", kAgain);
  const Json& target = manifest_.at("target");
  runtime_ = one_of(target.at("runtime"), "target.runtime", {"onnxruntime", "openvino", "tensorrt"});
  const int64_t threads = target.at("threads").integer();
  if (threads < 1 || threads > kMaxThreads) {
    throw Error("target.threads is " + std::to_string(threads) + ", not from 1 to " + std::to_string(kMaxThreads),
                kAgain);
  }
  threads_ = static_cast<int>(threads);
  model_ = listed(manifest_.at("model"));
  if (const Json* const reference = manifest_.find("reference")) listed(*reference);
  for (const Json& name : manifest_.at("classes").array()) classes_.push_back(name.string());

  if (const Json* const fed = manifest_.find("fed")) {
    if (one_of(fed->at("kind"), "fed.kind", {"image", "text"}) == "image") preprocess_ = parse_preprocess(*fed);
  }
  const size_t inputs = manifest_.at("inputs").array().size();
  const size_t outputs = manifest_.at("outputs").array().size();
  const Json& golden = manifest_.at("golden");
  golden_min_snr_db_ = golden.at("min_snr_db").number();
  for (const Json& record : golden.at("samples").array()) {
    Golden sample;
    if (const Json* const image = record.find("image")) sample.image = listed(*image);
    for (const Json& member : record.at("inputs").array()) sample.inputs.push_back(listed(member));
    for (const Json& member : record.at("outputs").array()) sample.outputs.push_back(listed(member));
    if (sample.inputs.size() != inputs || sample.outputs.size() != outputs) {
      throw Error("golden sample " + std::to_string(golden_.size()) + " has " + std::to_string(sample.inputs.size()) +
                      " inputs and " + std::to_string(sample.outputs.size()) + " outputs, the model " +
                      std::to_string(inputs) + " and " + std::to_string(outputs),
                  kAgain);
    }
    golden_.push_back(std::move(sample));
  }
}

const std::string& Bundle::listed(const Json& member) const {
  const std::string& name = member.string();
  if (sha256_.count(name) == 0)
    throw Error("the manifest refers to " + json_string(name) + ", which it does not list", kAgain);
  return name;
}

void Bundle::check_sha256(const std::string& member, const std::string& found) const {
  const std::string& wanted = sha256_.at(member);
  if (found == wanted) return;
  throw Error(path_ + ": " + member + " has SHA-256 " + found.substr(0, 16) + "..., the manifest says " +
                  wanted.substr(0, 16) + "...",
              kAgain);
}

std::string Bundle::read(const std::string& member) const {
  if (sha256_.count(member) == 0) throw Error(path_ + ": the manifest lists no " + member, "Pack it again with it.");
  std::string bytes = zip_->read(zip_->member(member));
  check_sha256(member, sha256_hex(bytes));
  return bytes;
}

Tensor Bundle::read_tensor(const std::string& member) const {
  const std::string bytes = read(member);
  return naming_path([&] {
    try {
      return parse_npy(bytes);
    } catch (const Error& error) {
      throw Error(member + " is " + error.what(), kAgain);
    }
  });
}

void Bundle::verify() const {
  for (const auto& file : sha256_) {
    Sha256 sha;
    zip_->stream(zip_->member(file.first), [&sha](const char* piece, size_t bytes) { sha.update(piece, bytes); });
    check_sha256(file.first, sha.hex());
  }
}

}  // namespace tlc
