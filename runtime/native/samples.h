// Labelled samples on disk, read one by one.
#ifndef TLC_NATIVE_SAMPLES_H_
#define TLC_NATIVE_SAMPLES_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bundle.h"
#include "tensor.h"

namespace tlc {

class Samples {
 public:
  virtual ~Samples() = default;

  virtual size_t size() const = 0;
  virtual std::string name(size_t index) const = 0;
  virtual int64_t label(size_t index) const = 0;  // position in classes()

  // Return what the model is fed, in the order of its inputs. Throws Error, naming the sample.
  virtual std::vector<Tensor> feeds(size_t index) const = 0;

  // Return the class names: the bundle's, else the data's; empty where neither has any.
  const std::vector<std::string>& classes() const { return classes_; }

 protected:
  std::vector<std::string> classes_;
};

// Open a folder with one folder of .jpg, .jpeg and .png per class, or an .npz: x (N, H, W) or (N, H, W, C) uint8 and y
// (N,), or prepared inputs "0/NAME", "1/NAME", ... and y. Throws Error for other layouts, classes that are not the
// bundle's, and pictures for a bundle whose preprocessing is not recorded.
std::unique_ptr<Samples> open_samples(const std::string& path, const Bundle& bundle,
                                      const std::vector<TensorSpec>& inputs);

// The two kinds.
std::unique_ptr<Samples> open_folder(const std::string& path, const Bundle& bundle,
                                     const std::vector<TensorSpec>& inputs);
std::unique_ptr<Samples> open_arrays(const std::string& path, const Bundle& bundle,
                                     const std::vector<TensorSpec>& inputs);

// Return what the model is fed for one file: a picture, or an .npz of one prepared sample, whose arrays are named NAME
// or 0/NAME. Throws Error.
std::vector<Tensor> feeds_of_file(const std::string& path, const Bundle& bundle, const std::vector<TensorSpec>& inputs);

// Return the bundle's preprocessing; throws Error where it has none for pictures.
const Preprocess& preprocess_of(const Bundle& bundle);

// Return what a model of `inputs` is fed for a preprocessed picture: in its type, and as often as its batch is fixed
// to. Throws Error for a model of several inputs or another type.
std::vector<Tensor> picture_feeds(const Tensor& prepared, const std::vector<TensorSpec>& inputs);

// Return the same for the picture in a file's bytes; throws Error, naming `path`.
std::vector<Tensor> picture_feeds(const std::string& path, const std::string& bytes, const Preprocess& preprocess,
                                  const std::vector<TensorSpec>& inputs);

// Return how many samples one inference takes: what the model fixes its batch to, else 1.
int64_t batch_of(const std::vector<TensorSpec>& inputs);

}  // namespace tlc

#endif  // TLC_NATIVE_SAMPLES_H_
