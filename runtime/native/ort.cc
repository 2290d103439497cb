#include "ort.h"

#include <cstdlib>
#include <functional>
#include <map>
#include <mutex>

#include "error.h"
#include "feeds.h"
#include "library.h"
#include "ort_api.h"

namespace tlc {

namespace {

constexpr char kWhereToGet[] =
    "Install onnxruntime and name its library: pip install onnxruntime, then --ort-lib \"$(python3 -c 'import glob, "
    "onnxruntime; print(glob.glob(onnxruntime.__path__[0] + \"/capi/libonnxruntime.*\")[0])')\", or set TLC_ORT_LIB.";

constexpr char kBadModel[] =
    "Check that the ONNX file is complete; a newer operator or opset needs a newer ONNX Runtime (--ort-lib).";

template <typename T>
using OrtHandle = std::unique_ptr<T, void (*)(T*)>;

// A libonnxruntime in this process, with the one environment that its sessions share.
class OrtLibrary {
 public:
  explicit OrtLibrary(const std::string& path);

  const OrtApi& api() const { return *api_; }
  const OrtEnv* env() const { return env_; }
  const OrtMemoryInfo* memory() const { return memory_; }
  std::string name() const { return "onnxruntime " + version_; }

  // Throw Error with `what` and ONNX Runtime's own message unless `status` is null.
  void check(OrtStatus* status, const std::string& what, const std::string& hint) const {
    if (status == nullptr) return;
    const std::string message = api_->GetErrorMessage(status);
    api_->ReleaseStatus(status);
    throw Error(what + ": " + message, hint);
  }

  // Ask for a handle from a function of the API, which releases it at the end.
  template <typename T>
  OrtHandle<T> make(const std::string& what, const std::string& hint, void (*release)(T*),
                    const std::function<OrtStatus*(T**)>& create) const {
    T* raw = nullptr;
    check(create(&raw), what, hint);
    return OrtHandle<T>(raw, release);
  }

 private:
  Library library_;
  const OrtApi* api_ = nullptr;
  OrtEnv* env_ = nullptr;
  OrtMemoryInfo* memory_ = nullptr;
  std::string version_;
};

OrtLibrary::OrtLibrary(const std::string& path)
    : library_(library_names(path, "TLC_ORT_LIB", {"libonnxruntime.so.1", "libonnxruntime.so"}), "ONNX Runtime",
               kWhereToGet) {
  const OrtApiBase* base = library_.function<const OrtApiBase*()>("OrtGetApiBase")();
  version_ = base->GetVersionString();
  api_ = base->GetApi(kApiVersion);
  if (api_ == nullptr) {
    throw Error("ONNX Runtime " + version_ + " does not offer version 5 of its C API, as 1.5 and later do",
                kWhereToGet);
  }
  // Errors come as Error; ONNX Runtime would print them to stderr as well.
  check(api_->CreateEnv(kLogFatal, "tlc", &env_), "cannot start ONNX Runtime", kWhereToGet);
  check(api_->CreateCpuMemoryInfo(kArenaAllocator, kDefaultMemory, &memory_), "cannot start ONNX Runtime", kWhereToGet);
}

// Return the library of that path, loaded once. It is never unloaded: ONNX Runtime's threads and destructors of static
// objects do not survive that everywhere.
const OrtLibrary& library(const std::string& path) {
  static std::mutex mutex;
  static auto& loaded = *new std::map<std::string, OrtLibrary*>();
  const std::lock_guard<std::mutex> lock(mutex);
  OrtLibrary*& entry = loaded[path];
  if (entry == nullptr) {
    // Official builds for Linux send what they run and a number of the device to their maker, and keep that number on
    // the disk; a device's work is its owner's. Somebody who has set the variable knows better.
    setenv("ORT_DISABLE_TELEMETRY", "1", 0);
    entry = new OrtLibrary(path);
  }
  return *entry;
}

DType dtype_from(OrtElementType type, const std::string& what) {
  switch (type) {
    case kFloat:
      return DType::kFloat32;
    case kFloat16:
      return DType::kFloat16;
    case kDouble:
      return DType::kFloat64;
    case kUint8:
      return DType::kUint8;
    case kInt8:
      return DType::kInt8;
    case kInt32:
      return DType::kInt32;
    case kInt64:
      return DType::kInt64;
    case kBool:
      return DType::kBool;
  }
  throw Error(what + " has ONNX element type " + std::to_string(type) + ", which this program does not know",
              "Export the model with floats, int8, uint8, int32, int64 or bool at its boundary.");
}

OrtElementType type_from(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return kFloat;
    case DType::kFloat16:
      return kFloat16;
    case DType::kFloat64:
      return kDouble;
    case DType::kUint8:
      return kUint8;
    case DType::kInt8:
      return kInt8;
    case DType::kInt32:
      return kInt32;
    case DType::kInt64:
      return kInt64;
    case DType::kBool:
      return kBool;
  }
  throw Error("unknown tensor type", "Report this with the command that you ran.");
}

class OrtModel : public Model {
 public:
  using Create = std::function<OrtStatus*(const OrtLibrary&, const OrtSessionOptions*, OrtSession**)>;

  OrtModel(const OpenOptions& options, const std::string& what, const Create& create)
      : library_(library(options.library)), session_(nullptr, nullptr) {
    const OrtApi& api = library_.api();
    try {
      load(options, what, create, false);
    } catch (const Error& error) {
      // With float16 scales ONNX Runtime (1.31) fuses some Q/DQ pairs to integer operators that it does not have for
      // float16, and then refuses its own graph. Unfused, the same numbers come out, only slower.
      const std::string message = error.what();
      if (message.find("tensor(float16)") == std::string::npos ||
          message.find("of operator (QLinear") == std::string::npos) {
        throw;
      }
      load(options, what, create, true);
    }
    size_t count = 0;
    library_.check(api.SessionGetInputCount(session_.get(), &count), what, "");
    for (size_t i = 0; i < count; ++i) {
      inputs_.push_back(spec("input", i, api.SessionGetInputName, api.SessionGetInputTypeInfo));
    }
    library_.check(api.SessionGetOutputCount(session_.get(), &count), what, "");
    for (size_t i = 0; i < count; ++i) {
      outputs_.push_back(spec("output", i, api.SessionGetOutputName, api.SessionGetOutputTypeInfo));
    }
  }

  const std::vector<TensorSpec>& inputs() const override { return inputs_; }
  const std::vector<TensorSpec>& outputs() const override { return outputs_; }
  std::string runtime() const override { return library_.name(); }
  std::unique_ptr<Context> make_context() override;

  std::string end_profiling() {
    const OrtApi& api = library_.api();
    const std::string what = "cannot read ONNX Runtime's profile";
    OrtAllocator* allocator = nullptr;
    library_.check(api.GetAllocatorWithDefaultOptions(&allocator), what, "");
    char* raw = nullptr;
    library_.check(api.SessionEndProfiling(session_.get(), allocator, &raw), what, "");
    const std::string file = raw;
    library_.check(api.AllocatorFree(allocator, raw), what, "");
    return file;
  }

  const OrtLibrary& library_of() const { return library_; }
  OrtSession* session() const { return session_.get(); }

 private:
  using GetName = OrtStatus* (*)(const OrtSession*, size_t, OrtAllocator*, char**);
  using GetType = OrtStatus* (*)(const OrtSession*, size_t, OrtTypeInfo**);

  void load(const OpenOptions& wanted, const std::string& what, const Create& create, bool unfused) {
    const OrtApi& api = library_.api();
    const auto options =
        library_.make<OrtSessionOptions>(what, "", api.ReleaseSessionOptions, api.CreateSessionOptions);
    library_.check(api.SetSessionGraphOptimizationLevel(options.get(), kAllOptimizations), what, "");
    library_.check(api.SetIntraOpNumThreads(options.get(), wanted.threads), what, "");
    if (!wanted.profile.empty()) {
      library_.check(api.EnableProfiling(options.get(), wanted.profile.c_str()), what, "");
    }
    library_.check(api.SetInterOpNumThreads(options.get(), 1), what, "");
    // Workers stop spinning when a run returns, so that they take no time from what runs next.
    library_.check(api.AddSessionConfigEntry(options.get(), "session.force_spinning_stop", "1"), what, "");
    if (unfused) {
      library_.check(api.AddSessionConfigEntry(options.get(), "session.disable_quant_qdq", "1"), what, "");
    }
    session_ = library_.make<OrtSession>(what, kBadModel, api.ReleaseSession,
                                         [&](OrtSession** out) { return create(library_, options.get(), out); });
  }

  TensorSpec spec(const char* kind, size_t index, GetName get_name, GetType get_type) const {
    const OrtApi& api = library_.api();
    const std::string names = "cannot read the model's names";
    OrtAllocator* allocator = nullptr;
    library_.check(api.GetAllocatorWithDefaultOptions(&allocator), names, "");
    char* raw = nullptr;
    library_.check(get_name(session_.get(), index, allocator, &raw), names, "");
    TensorSpec found{raw, DType::kFloat32, {}};
    library_.check(api.AllocatorFree(allocator, raw), names, "");

    const std::string what = std::string(kind) + " '" + found.name + "'";
    const auto type =
        library_.make<OrtTypeInfo>("cannot read the type of " + what, "", api.ReleaseTypeInfo,
                                   [&](OrtTypeInfo** out) { return get_type(session_.get(), index, out); });
    const OrtTensorInfo* tensor = nullptr;
    library_.check(api.CastTypeInfoToTensorInfo(type.get(), &tensor), what, "");
    if (tensor == nullptr) throw Error(what + " is not a tensor", "Export the model with tensors at its boundary.");
    OrtElementType element = kFloat;
    library_.check(api.GetTensorElementType(tensor, &element), what, "");
    found.dtype = dtype_from(element, what);
    size_t rank = 0;
    library_.check(api.GetDimensionsCount(tensor, &rank), what, "");
    found.shape.resize(rank);
    library_.check(api.GetDimensions(tensor, found.shape.data(), rank), what, "");
    std::vector<const char*> dims(rank, nullptr);
    library_.check(api.GetSymbolicDimensions(tensor, dims.data(), rank), what, "");
    for (size_t i = 0; i < rank; ++i) {
      const std::string dim = dims[i] == nullptr ? "" : dims[i];
      found.dims.push_back(found.shape[i] >= 0 ? "" : dim.empty() ? "?" : dim);
    }
    return found;
  }

  const OrtLibrary& library_;
  OrtHandle<OrtSession> session_;
  std::vector<TensorSpec> inputs_;
  std::vector<TensorSpec> outputs_;
};

// The session is shared: ONNX Runtime's Run may be called by several threads at once.
class OrtContext : public Context {
 public:
  explicit OrtContext(const OrtModel& model) : model_(model), api_(model.library_of().api()) {
    for (const TensorSpec& input : model.inputs()) input_names_.push_back(input.name.c_str());
    for (const TensorSpec& output : model.outputs()) output_names_.push_back(output.name.c_str());
    inputs_.resize(input_names_.size(), nullptr);
    outputs_.resize(output_names_.size(), nullptr);
  }

  ~OrtContext() override { release(); }
  OrtContext(const OrtContext&) = delete;
  OrtContext& operator=(const OrtContext&) = delete;

  void run(const std::vector<Tensor>& feeds, std::vector<Tensor>& outputs) override {
    check_feeds(model_.inputs(), feeds);
    release();  // what a run that failed left
    for (size_t i = 0; i < feeds.size(); ++i) {
      // The function takes non-const data, because a value may also be written to; inputs are not.
      void* data = const_cast<unsigned char*>(feeds[i].bytes.data());
      check(api_.CreateTensorWithDataAsOrtValue(model_.library_of().memory(), data, feeds[i].bytes.size(),
                                                feeds[i].shape.data(), feeds[i].shape.size(), type_from(feeds[i].dtype),
                                                &inputs_[i]));
    }
    OrtStatus* status = api_.Run(model_.session(), nullptr, input_names_.data(), inputs_.data(), inputs_.size(),
                                 output_names_.data(), output_names_.size(), outputs_.data());
    if (status != nullptr) fail(status, feeds);
    outputs.resize(outputs_.size());
    for (size_t i = 0; i < outputs_.size(); ++i) take(outputs_[i], outputs[i]);
    release();
  }

 private:
  void take(const OrtValue* value, Tensor& tensor) const {
    OrtTensorInfo* raw = nullptr;
    check(api_.GetTensorTypeAndShape(value, &raw));
    const OrtHandle<OrtTensorInfo> info(raw, api_.ReleaseTensorTypeAndShapeInfo);
    OrtElementType type = kFloat;
    size_t rank = 0;
    check(api_.GetTensorElementType(raw, &type));
    check(api_.GetDimensionsCount(raw, &rank));
    tensor.dtype = dtype_from(type, "an output");
    tensor.shape.resize(rank);
    check(api_.GetDimensions(raw, tensor.shape.data(), rank));
    void* data = nullptr;
    check(api_.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
    const auto* begin = static_cast<const unsigned char*>(data);
    const size_t bytes = element_count(tensor.shape, tensor.dtype) * size_bytes(tensor.dtype);
    tensor.bytes.assign(begin, begin + bytes);
  }

  void check(OrtStatus* status) const { model_.library_of().check(status, "inference failed", ""); }

  void fail(OrtStatus* status, const std::vector<Tensor>& feeds) const {
    std::string shapes;
    for (size_t i = 0; i < feeds.size(); ++i) {
      shapes += (i == 0 ? "" : ", ") + model_.inputs()[i].name + " [" + shape_text(feeds[i].shape) + "]";
    }
    model_.library_of().check(status, "inference failed on " + shapes,
                              "Try a batch of 1; a file exported for another batch size has to be exported again.");
  }

  void release() {
    for (std::vector<OrtValue*>* values : {&inputs_, &outputs_}) {
      for (OrtValue*& value : *values) {
        if (value != nullptr) api_.ReleaseValue(value);
        value = nullptr;
      }
    }
  }

  const OrtModel& model_;
  const OrtApi& api_;
  std::vector<const char*> input_names_;
  std::vector<const char*> output_names_;
  std::vector<OrtValue*> inputs_;
  std::vector<OrtValue*> outputs_;
};

std::unique_ptr<Context> OrtModel::make_context() { return std::make_unique<OrtContext>(*this); }

}  // namespace

std::string load_ort(const OpenOptions& options) { return library(options.library).name(); }

std::unique_ptr<Model> open_ort(const std::string& path, const OpenOptions& options) {
  return std::make_unique<OrtModel>(
      options, "cannot load " + path,
      [&](const OrtLibrary& library, const OrtSessionOptions* session_options, OrtSession** out) {
        return library.api().CreateSession(library.env(), path.c_str(), session_options, out);
      });
}

std::unique_ptr<Model> open_ort_bytes(const std::string& bytes, const OpenOptions& options) {
  return std::make_unique<OrtModel>(
      options, "cannot load the model",
      [&](const OrtLibrary& library, const OrtSessionOptions* session_options, OrtSession** out) {
        return library.api().CreateSessionFromArray(library.env(), bytes.data(), bytes.size(), session_options, out);
      });
}

std::string end_ort_profile(Model& model) { return dynamic_cast<OrtModel&>(model).end_profiling(); }

}  // namespace tlc
