#include "openvino.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "error.h"
#include "feeds.h"
#include "openvino_api.h"

namespace tlc {

namespace {

constexpr char kWhereToGet[] =
    "Install OpenVINO 2023.2 or later and name its C library: pip install openvino, then --openvino-lib \"$(python3 -c "
    "'import glob, openvino; print(glob.glob(openvino.__path__[0] + \"/libs/libopenvino_c.*\")[0])')\", or set "
    "TLC_OPENVINO_LIB.";

template <typename T>
using Handle = std::unique_ptr<T, void (*)(T*)>;

// Return OpenVINO's message without source locations, on one line.
std::string detail(const std::string& message) {
  std::string kept;
  size_t start = 0;
  while (start < message.size()) {
    const size_t end = std::min(message.find('\n', start), message.size());
    std::string line = message.substr(start, end - start);
    start = end + 1;
    const size_t first = line.find_first_not_of(" \t\r");
    if (first == std::string::npos) continue;
    line = line.substr(first, line.find_last_not_of(" \t\r") - first + 1);
    const bool location = line.rfind("Exception from ", 0) == 0 ||
                          (line.rfind("Check '", 0) == 0 && line.find("' failed at ") != std::string::npos);
    if (!location) kept += (kept.empty() ? "" : " ") + line;
  }
  while (!kept.empty() && kept.back() == '.') kept.pop_back();
  return kept;
}

std::string hint_for(const std::string& message) {
  if (message.find("Unable to read the model") != std::string::npos) {
    return "The file is not ONNX, or was cut short: export or copy it again.";
  }
  if (message.find("No conversion rule") != std::string::npos) {
    return "Export with a lower opset and without custom operators, or upgrade OpenVINO.";
  }
  return "Check the file with onnx.checker.check_model(path, full_check=True), and export it again.";
}

// The library with its functions, the same for all models of one file name.
class Runtime {
 public:
  explicit Runtime(const std::string& named)
      : library_(library_names(named, "TLC_OPENVINO_LIB", {"libopenvino_c.so", "libopenvino_c.dylib"}), "OpenVINO",
                 kWhereToGet),
        api_(library_),
        types_(numbered_types()) {
    OvVersion version{};
    check(api_.get_openvino_version(&version), "cannot ask OpenVINO for its release", kWhereToGet);
    version_ = version.build;
    version_ = version_.substr(0, version_.find('-'));
    api_.version_free(&version);
  }

  const OvApi& api() const { return api_; }
  const std::string& version() const { return version_; }

  // Throw Error with `what` and OpenVINO's own words unless `status` is success; an empty `hint` is chosen by them.
  void check(OvStatus status, const std::string& what, const std::string& hint = "") const {
    if (status == 0) return;
    const char* message = api_.get_last_err_msg();
    if (message == nullptr || *message == '\0') message = api_.get_error_info(status);
    const std::string text = detail(message);
    throw Error(what + ": " + text, hint.empty() ? hint_for(text) : hint);
  }

  OvElementType number(DType dtype) const { return types_.at(dtype); }

  // Return the type with that number; throws Error for one that is not supported.
  DType dtype(OvElementType number, const std::string& tensor) const {
    for (const auto& known : types_) {
      if (known.second == number) return known.first;
    }
    throw Error("tensor " + tensor + " has OpenVINO's element type " + std::to_string(number) +
                    ", and only float32, float16, float64, uint8, int8, int32, int64 and bool are supported",
                "Export the model with such tensors at its boundary.");
  }

 private:
  size_t bytes_of_eight(OvElementType type) const {
    int64_t eight = 8;
    OvTensor* raw = nullptr;
    if (api_.tensor_create(type, OvShape{1, &eight}, &raw) != 0 || raw == nullptr) return 0;
    size_t bytes = 0;
    const bool known = api_.tensor_get_byte_size(raw, &bytes) == 0;
    api_.tensor_free(raw);
    return known ? bytes : 0;
  }

  // Return the numbers of element types in this release. The enumeration begins with one or two types that no tensor
  // can have; then follow, since it exists, bool, bf16, f16, f32, f64, i4, i8, i16, i32, i64, u1, then other unsigned
  // types below a byte, whose number grew, and u8. So what eight elements take tells where bool and u8 stand.
  std::map<DType, OvElementType> numbered_types() const {
    constexpr OvElementType kMost = 32;
    OvElementType first = 0;
    while (first < kMost && bytes_of_eight(first) != 8) ++first;
    OvElementType byte = first + 11;
    while (byte < kMost && bytes_of_eight(byte) != 8) ++byte;
    const std::map<DType, OvElementType> numbers = {
        {DType::kBool, first},        {DType::kFloat16, first + 2}, {DType::kFloat32, first + 3},
        {DType::kFloat64, first + 4}, {DType::kInt8, first + 6},    {DType::kInt32, first + 8},
        {DType::kInt64, first + 9},   {DType::kUint8, byte},
    };
    for (const auto& number : numbers) {
      if (bytes_of_eight(number.second) == 8 * size_bytes(number.first)) continue;
      throw Error(library_.path() + " numbers its element types in an order that is not known",
                  "Use another release of OpenVINO with --openvino-lib.");
    }
    return numbers;
  }

  Library library_;
  OvApi api_;
  std::map<DType, OvElementType> types_;
  std::string version_;
};

// Return the runtime of that library, loaded at the first call.
const Runtime& runtime_of(const std::string& named) {
  static std::mutex mutex;
  // Never freed: OpenVINO's threads end with the process.
  static auto* loaded = new std::map<std::string, std::unique_ptr<Runtime>>;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Runtime>& runtime = (*loaded)[named];
  if (runtime == nullptr) runtime = std::make_unique<Runtime>(named);
  return *runtime;
}

class OpenVinoContext : public Context {
 public:
  OpenVinoContext(const Runtime& runtime, const std::vector<TensorSpec>& inputs, const std::vector<TensorSpec>& outputs,
                  OvRequest* request)
      : runtime_(runtime),
        inputs_(inputs),
        outputs_(outputs),
        request_(request, runtime.api().infer_request_free),
        bound_(inputs.size()) {}

  void run(const std::vector<Tensor>& feeds, std::vector<Tensor>& outputs) override {
    const OvApi& api = runtime_.api();
    check_feeds(inputs_, feeds);
    for (size_t i = 0; i < feeds.size(); ++i) bind(i, feeds[i]);
    runtime_.check(api.infer_request_infer(request_.get()), "inference failed on " + fed(feeds),
                   "Try a batch of 1; a file exported for another batch size has to be exported again.");
    outputs.resize(outputs_.size());
    for (size_t i = 0; i < outputs_.size(); ++i) take(i, outputs[i]);
  }

 private:
  // The request reads the caller's buffer where it is, so nothing is done for one that it already reads.
  void bind(size_t index, const Tensor& feed) {
    Bound& bound = bound_[index];
    if (bound.data == feed.bytes.data() && bound.shape == feed.shape) return;
    const OvApi& api = runtime_.api();
    const std::string what = "cannot feed input " + inputs_[index].name;
    Shape dims = feed.shape;
    OvTensor* raw = nullptr;
    // An address is wanted even where there are no values.
    void* data =
        feed.bytes.empty() ? static_cast<void*>(&bound.nothing) : const_cast<unsigned char*>(feed.bytes.data());
    const OvShape shape{static_cast<int64_t>(dims.size()), dims.data()};
    runtime_.check(api.tensor_create_from_host_ptr(runtime_.number(feed.dtype), shape, data, &raw), what);
    const Handle<OvTensor> tensor(raw, api.tensor_free);
    bound.data = nullptr;
    runtime_.check(api.infer_request_set_input_tensor_by_index(request_.get(), index, tensor.get()), what);
    bound.data = feed.bytes.data();
    bound.shape = feed.shape;
  }

  void take(size_t index, Tensor& output) {
    const OvApi& api = runtime_.api();
    const std::string what = "cannot read output " + outputs_[index].name;
    OvTensor* raw = nullptr;
    runtime_.check(api.infer_request_get_output_tensor_by_index(request_.get(), index, &raw), what);
    const Handle<OvTensor> tensor(raw, api.tensor_free);
    OvShape shape{};
    size_t bytes = 0;
    void* data = nullptr;
    runtime_.check(api.tensor_get_shape(raw, &shape), what);
    output.dtype = outputs_[index].dtype;
    output.shape.assign(shape.dims, shape.dims + shape.rank);
    api.shape_free(&shape);
    runtime_.check(api.tensor_get_byte_size(raw, &bytes), what);
    runtime_.check(api.tensor_data(raw, &data), what);
    output.bytes.resize(bytes);
    if (bytes != 0) std::memcpy(output.bytes.data(), data, bytes);
  }

  std::string fed(const std::vector<Tensor>& feeds) const {
    std::string text;
    for (size_t i = 0; i < feeds.size(); ++i) {
      text += (i == 0 ? "" : ", ") + inputs_[i].name + " [" + shape_text(feeds[i].shape) + "]";
    }
    return text;
  }

  struct Bound {
    const unsigned char* data = nullptr;
    Shape shape;
    double nothing = 0;
  };

  const Runtime& runtime_;
  const std::vector<TensorSpec>& inputs_;
  const std::vector<TensorSpec>& outputs_;
  Handle<OvRequest> request_;
  std::vector<Bound> bound_;
};

class OpenVinoModel : public Model {
 public:
  // Read the ONNX file at `path`, or `bytes` where those are given.
  OpenVinoModel(const Runtime& runtime, const std::string& path, const std::string* bytes, int threads)
      : runtime_(runtime),
        core_(nullptr, runtime.api().core_free),
        compiled_(nullptr, runtime.api().compiled_model_free) {
    const OvApi& api = runtime.api();
    const std::string what = "OpenVINO " + runtime.version() + " cannot load " + path;
    OvCore* core = nullptr;
    runtime.check(api.core_create(&core), "cannot start OpenVINO " + runtime.version(), kWhereToGet);
    core_.reset(core);
    OvModel* raw = nullptr;
    runtime.check(bytes == nullptr
                      ? api.core_read_model(core, path.c_str(), nullptr, &raw)
                      : api.core_read_model_from_memory_buffer(core, bytes->data(), bytes->size(), nullptr, &raw),
                  what);
    const Handle<OvModel> model(raw, api.model_free);
    OvCompiledModel* compiled = nullptr;
    const std::string count = std::to_string(threads);
    constexpr size_t kWords = 8;
    runtime.check(
        api.core_compile_model(core, raw, "CPU", kWords, &compiled, "INFERENCE_NUM_THREADS", count.c_str(),
                               "NUM_STREAMS", "1", "PERFORMANCE_HINT", "LATENCY", "INFERENCE_PRECISION_HINT", "f32"),
        what);
    compiled_.reset(compiled);
    size_t size = 0;
    runtime.check(api.compiled_model_inputs_size(compiled, &size), what);
    // A compiled output may also bear the name of a tensor that merged with it: names are the model's own.
    for (size_t i = 0; i < size; ++i) {
      inputs_.push_back(spec(name(port(api.model_const_input_by_index, model.get(), i)),
                             port(api.compiled_model_input_by_index, compiled_.get(), i)));
    }
    runtime.check(api.compiled_model_outputs_size(compiled, &size), what);
    for (size_t i = 0; i < size; ++i) {
      outputs_.push_back(spec(name(port(api.model_const_output_by_index, model.get(), i)),
                              port(api.compiled_model_output_by_index, compiled_.get(), i)));
    }
  }

  const std::vector<TensorSpec>& inputs() const override { return inputs_; }
  const std::vector<TensorSpec>& outputs() const override { return outputs_; }
  std::string runtime() const override { return "openvino " + runtime_.version(); }

  std::unique_ptr<Context> make_context() override {
    OvRequest* request = nullptr;
    runtime_.check(runtime_.api().compiled_model_create_infer_request(compiled_.get(), &request),
                   "OpenVINO cannot make a request of the model",
                   "Memory is the usual reason: stop what else uses it.");
    return std::make_unique<OpenVinoContext>(runtime_, inputs_, outputs_, request);
  }

 private:
  template <typename M>
  Handle<OvPort> port(OvStatus (*get)(const M*, size_t, OvPort**), const M* model, size_t index) const {
    OvPort* raw = nullptr;
    runtime_.check(get(model, index, &raw), "cannot read the model's inputs and outputs");
    return Handle<OvPort>(raw, runtime_.api().output_const_port_free);
  }

  std::string name(const Handle<OvPort>& port) const {
    char* raw = nullptr;
    runtime_.check(runtime_.api().port_get_any_name(port.get(), &raw), "cannot read a tensor's name");
    const std::string text = raw;
    runtime_.api().free(raw);
    return text;
  }

  TensorSpec spec(const std::string& name, const Handle<OvPort>& port) const {
    const OvApi& api = runtime_.api();
    OvElementType type = 0;
    runtime_.check(api.port_get_element_type(port.get(), &type), "cannot read the type of " + name);
    OvPartialShape partial{};
    runtime_.check(api.port_get_partial_shape(port.get(), &partial), "cannot read the shape of " + name);
    const bool ranked = partial.rank.min == partial.rank.max;
    Shape shape;
    for (int64_t i = 0; ranked && i < partial.rank.min; ++i) {
      const OvDimension& dim = partial.dims[i];
      shape.push_back(dim.min == dim.max ? dim.min : -1);
    }
    api.partial_shape_free(&partial);
    if (!ranked) {
      throw Error("tensor " + name + " has no fixed number of dimensions", "Export the model with known ranks.");
    }
    return {name, runtime_.dtype(type, name), shape};
  }

  const Runtime& runtime_;
  Handle<OvCore> core_;
  Handle<OvCompiledModel> compiled_;
  std::vector<TensorSpec> inputs_;
  std::vector<TensorSpec> outputs_;
};

}  // namespace

std::string load_openvino(const OpenOptions& options) { return "openvino " + runtime_of(options.library).version(); }

std::unique_ptr<Model> open_openvino(const std::string& path, const OpenOptions& options) {
  return std::make_unique<OpenVinoModel>(runtime_of(options.library), path, nullptr, options.threads);
}

std::unique_ptr<Model> open_openvino_bytes(const std::string& bytes, const OpenOptions& options) {
  return std::make_unique<OpenVinoModel>(runtime_of(options.library), "the model", &bytes, options.threads);
}

}  // namespace tlc
