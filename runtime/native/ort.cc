#include "ort.h"

#include <dlfcn.h>

#include <cstdlib>

#include "error.h"

namespace tlc {

namespace {

constexpr char kWhereToGet[] =
    "Install onnxruntime and name its library: pip install onnxruntime, then --ort-lib \"$(python3 -c 'import glob, "
    "onnxruntime; print(glob.glob(onnxruntime.__path__[0] + \"/capi/libonnxruntime.*\")[0])')\", or set TLC_ORT_LIB.";

constexpr char kBadModel[] =
    "Check that the ONNX file is complete; a newer operator or opset needs a newer ONNX Runtime (--ort-lib).";

// Return the names to try, in order: exactly one if somebody named it.
std::vector<std::string> candidates(const std::string& path) {
  if (!path.empty()) return {path};
  const char* from_environment = std::getenv("TLC_ORT_LIB");
  if (from_environment != nullptr && *from_environment != '\0') return {from_environment};
  return {"libonnxruntime.so.1", "libonnxruntime.so", "libonnxruntime.1.dylib", "libonnxruntime.dylib"};
}

void* open_library(const std::string& path) {
  std::string reason;
  for (const std::string& name : candidates(path)) {
    if (void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) return handle;
    const char* message = dlerror();
    if (reason.empty() && message != nullptr) reason = message;
  }
  throw Error("cannot load ONNX Runtime: " + reason, kWhereToGet);
}

// Ask for a handle from a function of the API, which releases it at the end.
template <typename T>
OrtHandle<T> make(const OrtLibrary& library, const std::string& what, const std::string& hint, void (*release)(T*),
                  const std::function<OrtStatus*(T**)>& create) {
  T* raw = nullptr;
  library.check(create(&raw), what, hint);
  return OrtHandle<T>(raw, release);
}

}  // namespace

OrtLibrary::OrtLibrary(const std::string& path) : handle_(open_library(path), dlclose) {
  using GetApiBase = const OrtApiBase* (*)();
  const auto get_base = reinterpret_cast<GetApiBase>(dlsym(handle_.get(), "OrtGetApiBase"));
  if (get_base == nullptr) throw Error("the library has no OrtGetApiBase, so it is not ONNX Runtime", kWhereToGet);
  const OrtApiBase* base = get_base();
  version_ = base->GetVersionString();
  api_ = base->GetApi(1);
  if (api_ == nullptr) throw Error("ONNX Runtime " + version_ + " does not offer version 1 of its C API", kWhereToGet);
}

void OrtLibrary::check(OrtStatus* status, const std::string& what, const std::string& hint) const {
  if (status == nullptr) return;
  const std::string message = api_->GetErrorMessage(status);
  api_->ReleaseStatus(status);
  throw Error(what + ": " + message, hint);
}

OrtModel::OrtModel(const OrtLibrary& library, const std::string& path, int threads)
    : library_(library), env_(nullptr, nullptr), session_(nullptr, nullptr) {
  const OrtApi& api = library.api();
  const std::string what = "cannot load " + path;
  env_ = make<OrtEnv>(library, what, "", api.ReleaseEnv,
                      [&](OrtEnv** out) { return api.CreateEnv(kLogErrors, "tlc-run", out); });
  const auto options = make<OrtSessionOptions>(library, what, "", api.ReleaseSessionOptions, api.CreateSessionOptions);
  library.check(api.SetSessionGraphOptimizationLevel(options.get(), kAllOptimizations), what, "");
  library.check(api.SetIntraOpNumThreads(options.get(), threads), what, "");
  library.check(api.SetInterOpNumThreads(options.get(), 1), what, "");
  session_ = make<OrtSession>(library, what, kBadModel, api.ReleaseSession, [&](OrtSession** out) {
    return api.CreateSession(env_.get(), path.c_str(), options.get(), out);
  });

  size_t count = 0;
  library.check(api.SessionGetInputCount(session_.get(), &count), what, "");
  for (size_t i = 0; i < count; ++i) inputs_.push_back(input_spec(i));
  library.check(api.SessionGetOutputCount(session_.get(), &count), what, "");
  for (size_t i = 0; i < count; ++i) outputs_.push_back(name(api.SessionGetOutputName, i));
}

std::string OrtModel::name(OrtStatus* (*get)(const OrtSession*, size_t, OrtAllocator*, char**), size_t index) const {
  const OrtApi& api = library_.api();
  OrtAllocator* allocator = nullptr;
  library_.check(api.GetAllocatorWithDefaultOptions(&allocator), "cannot read the model's names", "");
  char* raw = nullptr;
  library_.check(get(session_.get(), index, allocator, &raw), "cannot read the model's names", "");
  const std::string text = raw;
  library_.check(api.AllocatorFree(allocator, raw), "cannot read the model's names", "");
  return text;
}

InputSpec OrtModel::input_spec(size_t index) const {
  const OrtApi& api = library_.api();
  InputSpec spec;
  spec.name = name(api.SessionGetInputName, index);
  const std::string what = "cannot read the type of input '" + spec.name + "'";
  const auto type = make<OrtTypeInfo>(library_, what, "", api.ReleaseTypeInfo, [&](OrtTypeInfo** out) {
    return api.SessionGetInputTypeInfo(session_.get(), index, out);
  });
  const OrtTensorInfo* tensor = nullptr;
  library_.check(api.CastTypeInfoToTensorInfo(type.get(), &tensor), what, "");
  if (tensor == nullptr) throw Error("input '" + spec.name + "' is not a tensor", "Bench a model with tensor inputs.");
  library_.check(api.GetTensorElementType(tensor, &spec.type), what, "");
  size_t rank = 0;
  library_.check(api.GetDimensionsCount(tensor, &rank), what, "");
  spec.shape.resize(rank);
  library_.check(api.GetDimensions(tensor, spec.shape.data(), rank), what, "");
  return spec;
}

void OrtModel::bind(std::vector<Buffer>& buffers) {
  const OrtApi& api = library_.api();
  const auto memory = make<OrtMemoryInfo>(
      library_, "cannot describe memory", "", api.ReleaseMemoryInfo,
      [&](OrtMemoryInfo** out) { return api.CreateCpuMemoryInfo(kArenaAllocator, kDefaultMemory, out); });
  values_.clear();
  for (size_t i = 0; i < inputs_.size(); ++i) {
    Buffer& buffer = buffers.at(i);
    values_.push_back(make<OrtValue>(
        library_, "cannot make input '" + inputs_[i].name + "'", "", api.ReleaseValue, [&](OrtValue** out) {
          return api.CreateTensorWithDataAsOrtValue(memory.get(), buffer.bytes.data(), buffer.bytes.size(),
                                                    buffer.shape.data(), buffer.shape.size(), inputs_[i].type, out);
        }));
  }
}

void OrtModel::run() {
  const OrtApi& api = library_.api();
  std::vector<const char*> input_names, output_names;
  std::vector<const OrtValue*> values;
  for (const InputSpec& input : inputs_) input_names.push_back(input.name.c_str());
  for (const std::string& output : outputs_) output_names.push_back(output.c_str());
  for (const auto& value : values_) values.push_back(value.get());

  std::vector<OrtValue*> raw(outputs_.size(), nullptr);
  OrtStatus* status = api.Run(session_.get(), nullptr, input_names.data(), values.data(), values.size(),
                              output_names.data(), output_names.size(), raw.data());
  for (OrtValue* output : raw) {
    if (output != nullptr) api.ReleaseValue(output);
  }
  library_.check(status, "inference failed", "Pass the shape that the model was exported for with --shape.");
}

}  // namespace tlc
