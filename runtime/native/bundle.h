// A bundle: one zip file with a manifest, written by tlc.export.bundle. docs/bundle.md has the format.
#ifndef TLC_NATIVE_BUNDLE_H_
#define TLC_NATIVE_BUNDLE_H_

#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "json.h"
#include "preprocess.h"
#include "tensor.h"
#include "zip.h"

namespace tlc {

// Inputs with the outputs that they had where the bundle was made.
struct Golden {
  std::optional<std::string> image;  // member: the picture that the input was made from
  std::vector<std::string> inputs;   // members, .npy, in the order of the model's inputs
  std::vector<std::string> outputs;
};

class Bundle {
 public:
  // Open the file and check its manifest: format, version, the fields below, and that its list has every member with
  // its size, and no other, in their order. Throws Error; hashes are checked as members are read.
  explicit Bundle(const std::string& path);

  const std::string& path() const { return path_; }
  const Json& manifest() const { return manifest_; }
  const std::string& name() const { return name_; }
  const std::string& runtime() const { return runtime_; }  // of the target: "onnxruntime", "openvino" or "tensorrt"
  int threads() const { return threads_; }                 // of the target
  const std::string& model() const { return model_; }      // member: the ONNX file to deploy
  const std::vector<std::string>& classes() const { return classes_; }
  const std::optional<Preprocess>& preprocess() const { return preprocess_; }
  const std::vector<Golden>& golden() const { return golden_; }
  double golden_min_snr_db() const { return golden_min_snr_db_; }

  // Return the bytes of a member; throws Error unless their SHA-256 is the manifest's.
  std::string read(const std::string& member) const;

  // Return the tensor of an .npy member; throws as read().
  Tensor read_tensor(const std::string& member) const;

  // Read every member once, in constant memory; throws Error for the first whose SHA-256 is not the manifest's.
  void verify() const;

  // Return the number of members that the manifest lists.
  size_t file_count() const { return sha256_.size(); }

 private:
  template <typename Call>
  auto naming_path(Call call) const -> decltype(call());
  void read_fields();
  const std::string& listed(const Json& member) const;  // its name
  void check_sha256(const std::string& member, const std::string& found) const;

  std::string path_;
  std::unique_ptr<ZipFile> zip_;
  Json manifest_;
  std::map<std::string, std::string> sha256_;  // by member
  std::string name_;
  std::string runtime_;
  int threads_ = 1;
  std::string model_;
  std::vector<std::string> classes_;
  std::optional<Preprocess> preprocess_;
  std::vector<Golden> golden_;
  double golden_min_snr_db_ = 0;
};

}  // namespace tlc

#endif  // TLC_NATIVE_BUNDLE_H_
