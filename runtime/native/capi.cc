// The C API (include/tlc_runtime.h): exceptions end here, and what C sees is plain structs.

#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "error.h"
#include "include/tlc_runtime.h"
#include "opening.h"

namespace {

using tlc::DType;
using tlc::Error;
using tlc::Tensor;
using tlc::TensorSpec;

// The model and what it came from; the model and every context of it hold a share.
struct Loaded {
  tlc::Source source;
  std::unique_ptr<tlc::Model> model;
  std::string runtime;
};

// A call that no caller may make.
class Misuse : public Error {
 public:
  using Error::Error;
};

// Plain arrays, since the reason may be that there is no memory left.
thread_local char last_error[2048];
thread_local char last_hint[2048];

tlc_status fail(tlc_status status, const char* message, const char* hint) {
  std::snprintf(last_error, sizeof last_error, "%s", message);
  std::snprintf(last_hint, sizeof last_hint, "%s", hint);
  return status;
}

// Run `call` and return what came of it.
template <typename Call>
tlc_status guarded(Call call) noexcept {
  try {
    call();
    return TLC_OK;
  } catch (const Misuse& error) {
    return fail(TLC_MISUSE, error.what(), error.hint.c_str());
  } catch (const Error& error) {
    return fail(TLC_ERROR, error.what(), error.hint.c_str());
  } catch (const std::bad_alloc&) {
    return fail(TLC_INTERNAL, "no memory is left", "Free memory, or load a smaller model.");
  } catch (const std::exception& error) {
    return fail(TLC_INTERNAL, error.what(), "Report this with what led to it.");
  } catch (...) {
    return fail(TLC_INTERNAL, "an error of unknown kind", "Report this with what led to it.");
  }
}

void require(bool fine, const char* message) {
  if (!fine) throw Misuse(message, "Correct the call; tlc_runtime.h says what each argument must be.");
}

static_assert(TLC_FLOAT32 == static_cast<int>(DType::kFloat32) && TLC_FLOAT16 == static_cast<int>(DType::kFloat16) &&
                  TLC_FLOAT64 == static_cast<int>(DType::kFloat64) && TLC_UINT8 == static_cast<int>(DType::kUint8) &&
                  TLC_INT8 == static_cast<int>(DType::kInt8) && TLC_INT32 == static_cast<int>(DType::kInt32) &&
                  TLC_INT64 == static_cast<int>(DType::kInt64) && TLC_BOOL == static_cast<int>(DType::kBool),
              "tlc_dtype numbers the types as DType does");

// Copy a shape to an array of TLC_MAX_RANK, and return its rank.
int32_t copy_shape(const tlc::Shape& from, const std::string& name, int64_t* to) {
  if (from.size() > TLC_MAX_RANK) {
    throw Error(name + " has " + std::to_string(from.size()) + " dimensions, and this interface carries " +
                    std::to_string(TLC_MAX_RANK),
                "Reshape it inside the model.");
  }
  for (size_t i = 0; i < TLC_MAX_RANK; ++i) to[i] = i < from.size() ? from[i] : 0;
  return static_cast<int32_t>(from.size());
}

void describe(const std::vector<TensorSpec>& specs, size_t index, tlc_tensor_spec* out) {
  require(out != nullptr, "the place for the description is null");
  require(index < specs.size(), "the index is not below the number of inputs or outputs");
  out->name = specs[index].name.c_str();
  out->dtype = static_cast<tlc_dtype>(specs[index].dtype);
  out->rank = copy_shape(specs[index].shape, specs[index].name, out->shape);
}

// Read the options that the application knows: the first struct_size bytes.
tlc::Args args_of(const tlc_options* options) {
  tlc_options known{};
  if (options != nullptr) {
    require(options->struct_size >= sizeof options->struct_size, "tlc_options.struct_size is not set");
    std::memcpy(&known, options, options->struct_size < sizeof known ? options->struct_size : sizeof known);
  }
  require(known.threads >= 0 && known.threads <= 1024, "tlc_options.threads is not from 0 to 1024");
  tlc::Args args;
  if (known.threads > 0) args.threads = known.threads;
  if (known.backend != nullptr) args.backend = known.backend;
  if (known.library != nullptr) args.ort_lib = args.openvino_lib = known.library;
  if (known.plan != nullptr) args.plan = known.plan;
  return args;
}

}  // namespace

struct tlc_model {
  std::shared_ptr<const Loaded> loaded;
};

struct tlc_context {
  std::shared_ptr<const Loaded> loaded;  // before the context, which must not outlive it
  std::unique_ptr<tlc::Context> context;
  std::vector<Tensor> feeds;
  std::vector<Tensor> outputs;
};

namespace {

void check_outputs(const tlc_context* context, const tlc_tensor* outputs, size_t output_count) {
  require(context != nullptr, "the context is null");
  require(outputs != nullptr, "the place for the outputs is null");
  require(output_count == context->loaded->model->outputs().size(), "output_count is not the model's");
}

// Run on context->feeds.
void run(tlc_context* context, tlc_tensor* outputs) {
  context->context->run(context->feeds, context->outputs);
  const std::vector<TensorSpec>& specs = context->loaded->model->outputs();
  for (size_t i = 0; i < specs.size(); ++i) {
    const Tensor& from = context->outputs.at(i);
    outputs[i].data = from.bytes.data();
    outputs[i].size_bytes = from.bytes.size();
    outputs[i].dtype = static_cast<tlc_dtype>(from.dtype);
    outputs[i].rank = copy_shape(from.shape, specs[i].name, outputs[i].shape);
  }
}

// Return how the bundle prepares pictures, or null where it does not.
const tlc::Preprocess* preprocess_of(const Loaded& loaded) {
  if (!loaded.source.bundle || !loaded.source.bundle->preprocess()) return nullptr;
  return &*loaded.source.bundle->preprocess();
}

const tlc::Preprocess& picture_preprocess(const tlc_context* context) {
  const tlc::Preprocess* preprocess = preprocess_of(*context->loaded);
  if (preprocess == nullptr) {
    throw Error(context->loaded->source.path + " does not say how a picture becomes an input",
                "Prepare the input and call tlc_infer(), or pack the model with its preprocessing: tlc pack.");
  }
  return *preprocess;
}

Tensor feed_of(const tlc_tensor& from) {
  require(from.rank >= 0 && from.rank <= TLC_MAX_RANK, "the rank of an input is not from 0 to TLC_MAX_RANK");
  require(from.dtype >= TLC_FLOAT32 && from.dtype <= TLC_BOOL, "the dtype of an input is none of tlc_dtype");
  require(from.data != nullptr || from.size_bytes == 0, "the data of an input is null");
  Tensor feed;
  feed.dtype = static_cast<DType>(from.dtype);
  feed.shape.assign(from.shape, from.shape + from.rank);
  const auto* bytes = static_cast<const unsigned char*>(from.data);
  if (from.size_bytes > 0) feed.bytes.assign(bytes, bytes + from.size_bytes);
  return feed;
}

}  // namespace

extern "C" {

uint32_t tlc_api_version(void) { return TLC_RUNTIME_API_VERSION; }

const char* tlc_version(void) { return TLC_VERSION; }

const char* tlc_last_error(void) { return last_error; }

const char* tlc_last_hint(void) { return last_hint; }

tlc_status tlc_model_load(const char* path, const tlc_options* options, tlc_model** model) {
  if (model != nullptr) *model = nullptr;
  return guarded([&] {
    require(path != nullptr, "the path is null");
    require(model != nullptr, "the place for the model is null");
    auto loaded = std::make_shared<Loaded>();
    loaded->source = tlc::find_source(path, args_of(options));
    loaded->model = tlc::open_source(loaded->source);
    loaded->runtime = loaded->model->runtime();
    *model = new tlc_model{std::move(loaded)};
  });
}

void tlc_model_free(tlc_model* model) { delete model; }

const char* tlc_model_runtime(const tlc_model* model) {
  return model == nullptr ? nullptr : model->loaded->runtime.c_str();
}

size_t tlc_model_input_count(const tlc_model* model) {
  return model == nullptr ? 0 : model->loaded->model->inputs().size();
}

size_t tlc_model_output_count(const tlc_model* model) {
  return model == nullptr ? 0 : model->loaded->model->outputs().size();
}

tlc_status tlc_model_input(const tlc_model* model, size_t index, tlc_tensor_spec* spec) {
  return guarded([&] {
    require(model != nullptr, "the model is null");
    describe(model->loaded->model->inputs(), index, spec);
  });
}

tlc_status tlc_model_output(const tlc_model* model, size_t index, tlc_tensor_spec* spec) {
  return guarded([&] {
    require(model != nullptr, "the model is null");
    describe(model->loaded->model->outputs(), index, spec);
  });
}

size_t tlc_model_class_count(const tlc_model* model) {
  return model == nullptr || !model->loaded->source.bundle ? 0 : model->loaded->source.bundle->classes().size();
}

const char* tlc_model_class(const tlc_model* model, size_t index) {
  return index < tlc_model_class_count(model) ? model->loaded->source.bundle->classes()[index].c_str() : nullptr;
}

int32_t tlc_model_picture_channels(const tlc_model* model) {
  const tlc::Preprocess* preprocess = model == nullptr ? nullptr : preprocess_of(*model->loaded);
  return preprocess == nullptr ? 0 : preprocess->channel_count();
}

tlc_status tlc_context_create(tlc_model* model, tlc_context** context) {
  if (context != nullptr) *context = nullptr;
  return guarded([&] {
    require(model != nullptr, "the model is null");
    require(context != nullptr, "the place for the context is null");
    std::unique_ptr<tlc_context> made(new tlc_context{model->loaded, model->loaded->model->make_context(), {}, {}});
    *context = made.release();
  });
}

void tlc_context_free(tlc_context* context) { delete context; }

tlc_status tlc_infer(tlc_context* context, const tlc_tensor* inputs, size_t input_count, tlc_tensor* outputs,
                     size_t output_count) {
  return guarded([&] {
    check_outputs(context, outputs, output_count);
    require(inputs != nullptr || input_count == 0, "the inputs are null");
    require(input_count == context->loaded->model->inputs().size(), "input_count is not the model's");
    context->feeds.clear();
    for (size_t i = 0; i < input_count; ++i) context->feeds.push_back(feed_of(inputs[i]));
    run(context, outputs);
  });
}

tlc_status tlc_infer_image(tlc_context* context, const void* file, size_t size_bytes, tlc_tensor* outputs,
                           size_t output_count) {
  return guarded([&] {
    check_outputs(context, outputs, output_count);
    require(file != nullptr, "the picture is null");
    const tlc::Preprocess& preprocess = picture_preprocess(context);
    const std::string bytes(static_cast<const char*>(file), size_bytes);
    context->feeds.assign(1, tlc::preprocessed(preprocess, tlc::read_image(bytes, preprocess.channel_count())));
    run(context, outputs);
  });
}

tlc_status tlc_infer_pixels(tlc_context* context, const uint8_t* pixels, int32_t height, int32_t width,
                            tlc_tensor* outputs, size_t output_count) {
  return guarded([&] {
    check_outputs(context, outputs, output_count);
    require(pixels != nullptr, "the pixels are null");
    require(height > 0 && width > 0, "height and width are not positive");
    require(static_cast<int64_t>(height) * width <= tlc::kMaxImagePixels,
            "the picture has more than 90,000,000 pixels");
    const tlc::Preprocess& preprocess = picture_preprocess(context);
    const int channels = preprocess.channel_count();
    context->feeds.assign(1, tlc::preprocessed_pixels(preprocess, pixels, height, width, channels));
    run(context, outputs);
  });
}

}  // extern "C"
