#include "samples.h"

#include <dirent.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <map>
#include <utility>

#include "error.h"
#include "files.h"
#include "values.h"

namespace tlc {

namespace {

constexpr int kDeepest = 32;  // folders in folders: links may go round in circles
constexpr std::array<const char*, 3> kRead = {".jpg", ".jpeg", ".png"};
// What Python takes for pictures besides: leaving them out would measure on other data than Python does.
constexpr std::array<const char*, 6> kNotRead = {".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"};
constexpr std::array<const char*, 4> kSplits = {"val", "validation", "valid", "test"};

bool is_folder(const std::string& path) {
  struct stat status{};
  return stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

// Return the names in the folder, sorted, without hidden ones.
std::vector<std::string> names_in(const std::string& folder) {
  const std::unique_ptr<DIR, int (*)(DIR*)> opened(opendir(folder.c_str()), closedir);
  if (!opened) throw Error("cannot read " + folder + ": " + std::strerror(errno), "Check the path given as --data.");
  std::vector<std::string> names;
  while (const dirent* entry = readdir(opened.get())) {
    if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

template <typename Suffixes>
bool ends_with_any(std::string name, const Suffixes& suffixes) {
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
  return std::any_of(suffixes.begin(), suffixes.end(), [&](const std::string& suffix) {
    return name.size() >= suffix.size() && name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0;
  });
}

// Add the pictures under root/folder to `files`, as paths from root.
void add_pictures(const std::string& root, const std::string& folder, int depth, std::vector<std::string>& files) {
  if (depth > kDeepest) {
    throw Error(root + "/" + folder + " is more than " + std::to_string(kDeepest) + " folders deep",
                "Remove links that lead back to a folder above them.");
  }
  for (const std::string& name : names_in(root + "/" + folder)) {
    const std::string path = folder + "/" + name;
    if (is_folder(root + "/" + path)) {
      add_pictures(root, path, depth + 1, files);
    } else if (ends_with_any(name, kRead)) {
      files.push_back(path);
    } else if (ends_with_any(name, kNotRead)) {
      throw Error(root + "/" + path + " is neither JPEG nor PNG, which are what tlc-run reads",
                  "Convert such pictures, or put prepared arrays into an .npz.");
    }
  }
}

std::string joined(const std::vector<std::string>& names) {
  constexpr size_t most = 5;
  std::string text;
  for (size_t i = 0; i < std::min(most, names.size()); ++i) text += (i == 0 ? "" : ", ") + names[i];
  return text + (names.size() > most ? " and " + std::to_string(names.size() - most) + " more" : "");
}

class FolderSamples : public Samples {
 public:
  FolderSamples(const std::string& path, const Bundle& bundle, const std::vector<TensorSpec>& inputs)
      : path_(path), preprocess_(preprocess_of(bundle)), inputs_(inputs) {
    std::vector<std::string> found;
    for (const std::string& name : names_in(path)) {
      if (is_folder(path + "/" + name)) found.push_back(name);
    }
    check_layout(found);
    classes_ = bundle.classes().empty() ? found : bundle.classes();
    check_classes(found);
    std::map<std::string, int64_t> labels;
    for (size_t i = 0; i < classes_.size(); ++i) labels[classes_[i]] = static_cast<int64_t>(i);
    for (const std::string& name : found) {
      add_pictures(path, name, 1, files_);
      labels_.resize(files_.size(), labels.at(name));
    }
    if (files_.empty()) throw Error(path + " holds no pictures", "Put one folder of .jpg or .png per class there.");
  }

  size_t size() const override { return files_.size(); }
  std::string name(size_t index) const override { return files_[index]; }
  int64_t label(size_t index) const override { return labels_[index]; }

  std::vector<Tensor> feeds(size_t index) const override {
    const std::string path = path_ + "/" + files_[index];
    return picture_feeds(path, read_file(path), preprocess_, inputs_);
  }

 private:
  void check_layout(const std::vector<std::string>& found) const {
    if (found.empty()) {
      throw Error(path_ + " holds no folders", "Put one folder of .jpg or .png per class there.");
    }
    if (std::find(found.begin(), found.end(), "train") == found.end()) return;
    for (const char* split : kSplits) {
      if (std::find(found.begin(), found.end(), split) != found.end()) {
        throw Error(path_ + " holds train/ and " + split + "/, not classes",
                    "Give the part to evaluate on: --data " + path_ + "/" + split);
      }
    }
  }

  void check_classes(const std::vector<std::string>& found) const {
    std::vector<std::string> unknown, missing;
    const auto lacks = [](const std::vector<std::string>& names, const std::string& name) {
      return std::find(names.begin(), names.end(), name) == names.end();
    };
    for (const std::string& name : found) {
      if (lacks(classes_, name)) unknown.push_back(name);
    }
    for (const std::string& name : classes_) {
      if (lacks(found, name)) missing.push_back(name);
    }
    if (!unknown.empty()) {
      throw Error(path_ + " has classes that the model does not know: " + joined(unknown) +
                      "; the model's that have no folder: " + (missing.empty() ? "none" : joined(missing)),
                  "Rename the folders to the model's class names.");
    }
    if (!missing.empty()) {
      throw Error(path_ + " has no folder for " + std::to_string(missing.size()) + " of " +
                      std::to_string(classes_.size()) + " classes: " + joined(missing),
                  "Give data with every class, or an empty folder for one that has none.");
    }
  }

  std::string path_;
  Preprocess preprocess_;
  std::vector<TensorSpec> inputs_;
  std::vector<std::string> files_;
  std::vector<int64_t> labels_;
};

}  // namespace

const Preprocess& preprocess_of(const Bundle& bundle) {
  if (bundle.preprocess()) return *bundle.preprocess();
  throw Error(bundle.path() + " does not say how pictures become its input",
              bundle.manifest().find("fed") != nullptr
                  ? "It takes texts: prepare them as token arrays in an .npz, with keys such as 0/input_ids."
                  : "Pack it again with its preprocessing, or give prepared inputs in an .npz.");
}

int64_t batch_of(const std::vector<TensorSpec>& inputs) {
  const bool fixed = !inputs.empty() && !inputs.front().shape.empty() && inputs.front().shape[0] > 1;
  return fixed ? inputs.front().shape[0] : 1;
}

std::vector<Tensor> picture_feeds(const Tensor& prepared, const std::vector<TensorSpec>& inputs) {
  if (inputs.size() != 1) {
    throw Error("the model has " + std::to_string(inputs.size()) + " inputs, a picture feeds 1",
                "Give prepared inputs in an .npz.");
  }
  Tensor one = as_floating(prepared, inputs.front().dtype);
  const std::vector<unsigned char> bytes = one.bytes;
  for (int64_t i = 1; i < batch_of(inputs); ++i) one.bytes.insert(one.bytes.end(), bytes.begin(), bytes.end());
  one.shape[0] = batch_of(inputs);
  std::vector<Tensor> feeds;
  feeds.push_back(std::move(one));
  return feeds;
}

std::vector<Tensor> picture_feeds(const std::string& path, const std::string& bytes, const Preprocess& preprocess,
                                  const std::vector<TensorSpec>& inputs) {
  try {
    return picture_feeds(preprocessed(preprocess, read_image(bytes, preprocess.channel_count())), inputs);
  } catch (const Error& error) {
    throw Error(path + ": " + error.what(), error.hint);
  }
}

std::unique_ptr<Samples> open_folder(const std::string& path, const Bundle& bundle,
                                     const std::vector<TensorSpec>& inputs) {
  return std::make_unique<FolderSamples>(path, bundle, inputs);
}

std::unique_ptr<Samples> open_samples(const std::string& path, const Bundle& bundle,
                                      const std::vector<TensorSpec>& inputs) {
  struct stat status{};
  if (stat(path.c_str(), &status) != 0) {
    throw Error("cannot read " + path + ": " + std::strerror(errno), "Check the path given as --data.");
  }
  if (S_ISDIR(status.st_mode)) return open_folder(path, bundle, inputs);
  if (ends_with_any(path, std::array<const char*, 1>{".npz"})) return open_arrays(path, bundle, inputs);
  throw Error(path + " is neither a folder nor an .npz", "Give a folder with one folder per class, or an .npz.");
}

}  // namespace tlc
