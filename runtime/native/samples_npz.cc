#include <algorithm>
#include <cstring>
#include <fstream>

#include "error.h"
#include "files.h"
#include "npy.h"
#include "samples.h"
#include "values.h"
#include "zip.h"

namespace tlc {

namespace {

constexpr char kLayout[] =
    "Save numpy.savez(FILE, x=..., y=...): x uint8 (N, H, W) or (N, H, W, C), y integers (N,); or prepared inputs as "
    "0/NAME, 1/NAME, ... and y.";
constexpr size_t kHeadBytes = 4096;

// An .npz whose members are whole: every CRC has been looked at.
class Arrays {
 public:
  explicit Arrays(const std::string& path) : path_(path), zip_(path) {
    for (const ZipMember& member : zip_.members()) zip_.stream(member, [](const char*, size_t) {});
  }

  const std::string& path() const { return path_; }
  const ZipMember* find(const std::string& name) const { return zip_.find(name + ".npy"); }

  Tensor read(const std::string& name) const {
    const ZipMember* const member = find(name);
    if (member == nullptr) throw Error(path_ + " has no array " + name, kLayout);
    return naming(name, [&] { return parse_npy(zip_.read(*member)); });
  }

  NpyHeader header(const std::string& name) const {
    const ZipMember* const member = find(name);
    return naming(name, [&] {
      const auto bytes = std::min<uint64_t>(kHeadBytes, member->size_bytes);
      return parse_npy_header(part(member->offset, bytes), member->size_bytes);
    });
  }

  std::vector<std::string> texts(const std::string& name) const {
    return naming(name, [&] { return parse_npy_text(zip_.read(*find(name))); });
  }

  // Return bytes of the file, which must be there.
  std::string part(uint64_t offset, uint64_t bytes) const {
    std::ifstream file(path_, std::ios::binary);
    std::string text(static_cast<size_t>(bytes), '\0');
    file.seekg(static_cast<std::streamoff>(offset));
    if (!file.read(&text[0], static_cast<std::streamsize>(bytes))) {
      throw Error("cannot read " + path_ + " any more", "Leave the data alone while it is read.");
    }
    return text;
  }

 private:
  // Every message names the file and the array.
  template <typename Call>
  auto naming(const std::string& name, Call call) const -> decltype(call()) {
    try {
      return call();
    } catch (const Error& error) {
      throw Error(path_ + ": " + name + ": " + error.what(), error.hint);
    }
  }

  std::string path_;
  ZipFile zip_;
};

std::vector<int64_t> read_labels(const Arrays& arrays, const std::string& key) {
  const Tensor tensor = arrays.read(key);
  const bool whole = tensor.dtype == DType::kInt64 || tensor.dtype == DType::kInt32 || tensor.dtype == DType::kInt8 ||
                     tensor.dtype == DType::kUint8;
  if (!whole || tensor.shape.size() != 1) {
    throw Error(arrays.path() + ": " + key + " is " + name_of(tensor.dtype) + " of shape " + shape_text(tensor.shape) +
                    "; labels are integers (N,)",
                kLayout);
  }
  std::vector<int64_t> labels;
  for (const double value : as_doubles(tensor)) labels.push_back(static_cast<int64_t>(value));
  if (labels.empty()) throw Error(arrays.path() + ": " + key + " is empty", kLayout);
  return labels;
}

// What both kinds of .npz have: labels, and the names of classes.
class ArraySamples : public Samples {
 public:
  ArraySamples(const std::string& path, const Bundle& bundle) : arrays_(path) { classes_ = bundle.classes(); }

  size_t size() const override { return labels_.size(); }
  int64_t label(size_t index) const override { return labels_[index]; }

 protected:
  // Read the labels, and number them as the bundle does where the file names its classes in another order.
  void read(const std::string& key) {
    labels_ = read_labels(arrays_, key);
    const std::vector<std::string> own = arrays_.find("classes") == nullptr ? classes_ : arrays_.texts("classes");
    if (classes_.empty()) classes_ = own;
    for (size_t i = 0; i < labels_.size(); ++i) {
      int64_t& label = labels_[i];
      if (label < 0 || (!own.empty() && label >= static_cast<int64_t>(own.size()))) {
        throw Error(arrays_.path() + ": label " + std::to_string(label) + " of " + key + "[" + std::to_string(i) +
                        "] is outside 0 to " + std::to_string(static_cast<int64_t>(own.size()) - 1),
                    "Number the classes from 0 in the model's order.");
      }
      if (own == classes_) continue;
      const std::string& name = own[static_cast<size_t>(label)];
      const auto known = std::find(classes_.begin(), classes_.end(), name);
      if (known == classes_.end()) {
        throw Error(arrays_.path() + " has a class that the model does not know: " + name,
                    "Name the classes as the model does.");
      }
      label = known - classes_.begin();
    }
  }

  Arrays arrays_;
  std::vector<int64_t> labels_;
};

class PixelSamples : public ArraySamples {
 public:
  PixelSamples(const std::string& path, const Bundle& bundle, const std::vector<TensorSpec>& inputs,
               const std::string& x, const std::string& y)
      : ArraySamples(path, bundle),
        key_(x),
        preprocess_(preprocess_of(bundle)),
        inputs_(inputs),
        header_(arrays_.header(x)) {
    read(y);
    if (header_.shape.size() == 3) header_.shape.push_back(1);
    const Shape& shape = header_.shape;
    const bool pictures = shape.size() == 4 && (shape[3] == 1 || shape[3] == 3) && shape[1] > 0 && shape[2] > 0;
    if (header_.dtype != DType::kUint8 || !pictures) {
      throw Error(path + ": " + x + " is " + name_of(header_.dtype) + " of shape " + shape_text(shape) +
                      "; uint8 pixels (N, H, W) or (N, H, W, C) with 1 or 3 channels are read",
                  kLayout);
    }
    if (shape[1] > kMaxImagePixels / shape[2]) {
      throw Error(path + ": pictures of " + shape_text({shape[1], shape[2]}) + " pixels; the limit is " +
                      std::to_string(kMaxImagePixels),
                  "Scale them down.");
    }
    if (shape[0] != static_cast<int64_t>(labels_.size())) {
      throw Error(path + ": " + y + " has " + std::to_string(labels_.size()) + " labels for " +
                      std::to_string(shape[0]) + " samples",
                  "Give one label per sample.");
    }
    first_ = arrays_.find(x)->offset + header_.data_offset;
  }

  std::string name(size_t index) const override { return key_ + "[" + std::to_string(index) + "]"; }

  std::vector<Tensor> feeds(size_t index) const override {
    const Shape& shape = header_.shape;
    const auto row_bytes = static_cast<uint64_t>(shape[1] * shape[2] * shape[3]);
    const std::string pixels = arrays_.part(first_ + index * row_bytes, row_bytes);
    return picture_feeds(
        preprocessed_pixels(preprocess_, reinterpret_cast<const uint8_t*>(pixels.data()), static_cast<int>(shape[1]),
                            static_cast<int>(shape[2]), static_cast<int>(shape[3])),
        inputs_);
  }

 private:
  std::string key_;
  Preprocess preprocess_;
  std::vector<TensorSpec> inputs_;
  NpyHeader header_;
  uint64_t first_ = 0;  // byte of the first sample in the file
};

class PreparedSamples : public ArraySamples {
 public:
  PreparedSamples(const std::string& path, const Bundle& bundle, const std::vector<TensorSpec>& inputs)
      : ArraySamples(path, bundle), inputs_(inputs) {
    for (const TensorSpec& input : inputs) {
      if (arrays_.find("0/" + input.name) == nullptr) {
        throw Error(path + " has neither x nor 0/" + input.name, kLayout);
      }
    }
    read("y");
    const std::string beyond = std::to_string(labels_.size()) + "/" + inputs.front().name;
    if (arrays_.find(beyond) != nullptr) {
      throw Error(path + ": y has " + std::to_string(labels_.size()) + " labels, and there is a sample " + beyond,
                  "Give one label per sample.");
    }
  }

  std::string name(size_t index) const override { return std::to_string(index); }

  std::vector<Tensor> feeds(size_t index) const override {
    std::vector<Tensor> feeds;
    for (const TensorSpec& input : inputs_) feeds.push_back(arrays_.read(std::to_string(index) + "/" + input.name));
    return feeds;
  }

 private:
  std::vector<TensorSpec> inputs_;
};

}  // namespace

std::unique_ptr<Samples> open_arrays(const std::string& path, const Bundle& bundle,
                                     const std::vector<TensorSpec>& inputs) {
  const ZipFile zip(path);
  for (const std::string part : {"", "_val", "_test"}) {  // as Python: x_train is what the model was made with
    if (zip.find("x" + part + ".npy") != nullptr) {
      return std::make_unique<PixelSamples>(path, bundle, inputs, "x" + part, "y" + part);
    }
  }
  return std::make_unique<PreparedSamples>(path, bundle, inputs);
}

std::vector<Tensor> feeds_of_file(const std::string& path, const Bundle& bundle,
                                  const std::vector<TensorSpec>& inputs) {
  const bool arrays = path.size() > 4 && path.compare(path.size() - 4, 4, ".npz") == 0;
  if (!arrays) {
    const Preprocess& preprocess = preprocess_of(bundle);
    return picture_feeds(path, read_file(path), preprocess, inputs);
  }
  const Arrays file(path);
  std::vector<Tensor> feeds;
  for (const TensorSpec& input : inputs) {
    feeds.push_back(file.read(file.find(input.name) != nullptr ? input.name : "0/" + input.name));
  }
  return feeds;
}

}  // namespace tlc
