// Order matters in three places: the GPU is looked for before TensorRT is touched, a graph is captured only after one
// run with the same shapes, and the context goes before the engine, the engine before the runtime.
#include "tensorrt.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <mutex>

#include "cuda.h"
#include "error.h"
#include "feeds.h"
#include "plan.h"
#include "tensorrt_api.h"
#include "tensorrt_io.h"

namespace tlc {

namespace {

constexpr char kGpuMemory[] = "GPU memory is the usual reason: stop what else uses it.";

// One tensor's memory on both sides.
class Buffer {
 public:
  Buffer(const Cuda& cuda, size_t size_bytes)
      : cuda_(cuda), size_bytes_(size_bytes), device_(cuda.malloc(size_bytes)), host_(nullptr) {
    try {
      host_ = cuda.malloc_host(size_bytes);
    } catch (...) {
      cuda.free(device_);
      throw;
    }
  }
  ~Buffer() {
    cuda_.free_host(host_);
    cuda_.free(device_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  size_t size_bytes() const { return size_bytes_; }
  void* device() const { return device_; }
  void* host() const { return host_; }  // pinned, which asynchronous copies need

 private:
  const Cuda& cuda_;
  size_t size_bytes_;
  void* device_;
  void* host_;
};

// A tensor with its buffer, in its present shape.
struct Slot {
  const TensorSpec* spec;
  Shape shape;
  size_t bytes = 0;
  std::unique_ptr<Buffer> buffer;
};

bool is_within(const Shape& shape, const ProfileShapes& limits) {
  if (shape.size() != limits.min.size()) return false;
  for (size_t dim = 0; dim < shape.size(); ++dim) {
    if (shape[dim] < limits.min[dim] || shape[dim] > limits.max[dim]) return false;
  }
  return true;
}

class TensorRtContext : public Context {
 public:
  TensorRtContext(TensorRt& tensorrt, const std::string& name, const EngineTensors& tensors,
                  const nvinfer1::ICudaEngine& engine, std::unique_ptr<nvinfer1::IExecutionContext> context)
      : tensorrt_(tensorrt),
        cuda_(Cuda::get()),
        name_(name),
        tensors_(tensors),
        context_(std::move(context)),
        io_(engine, *context_),
        stream_(cuda_.create_stream()) {
    for (const TensorSpec& spec : tensors.inputs) inputs_.push_back({&spec, {}, 0, nullptr});
    for (const TensorSpec& spec : tensors.outputs) outputs_.push_back({&spec, {}, 0, nullptr});
  }

  ~TensorRtContext() override {
    drop_graph();
    cuda_.destroy_stream(stream_);
  }

  void run(const std::vector<Tensor>& feeds, std::vector<Tensor>& outputs) override {
    check(feeds);
    if (!prepared_for(feeds)) prepare(feeds);
    for (size_t i = 0; i < inputs_.size(); ++i) {
      if (inputs_[i].bytes == 0) continue;
      const Buffer& buffer = *inputs_[i].buffer;
      std::memcpy(buffer.host(), feeds[i].bytes.data(), inputs_[i].bytes);
      cuda_.copy_to_device(buffer.device(), buffer.host(), inputs_[i].bytes, stream_);
    }
    if (graph_ == nullptr) {
      enqueue();
    } else {
      cuda_.launch(graph_, stream_);
    }
    for (const Slot& slot : outputs_) {
      if (slot.bytes != 0) cuda_.copy_to_host(slot.buffer->host(), slot.buffer->device(), slot.bytes, stream_);
    }
    cuda_.synchronize(stream_);
    outputs.resize(outputs_.size());
    for (size_t i = 0; i < outputs_.size(); ++i) {
      outputs[i].dtype = outputs_[i].spec->dtype;
      outputs[i].shape = outputs_[i].shape;
      const auto* values = static_cast<const unsigned char*>(outputs_[i].buffer->host());
      outputs[i].bytes.assign(values, values + outputs_[i].bytes);
    }
  }

 private:
  void check(const std::vector<Tensor>& feeds) const {
    check_feeds(tensors_.inputs, feeds);
    for (size_t i = 0; i < feeds.size(); ++i) {
      const ProfileShapes& limits = tensors_.profiles[i];
      if (!is_within(feeds[i].shape, limits)) {
        throw Error(name_ + ": input " + tensors_.inputs[i].name + " takes shapes from [" + shape_text(limits.min) +
                        "] to [" + shape_text(limits.max) + "], got [" + shape_text(feeds[i].shape) + "]",
                    "Feed a shape within these, or build the engine with other ones.");
      }
    }
  }

  bool prepared_for(const std::vector<Tensor>& feeds) const {
    for (size_t i = 0; i < inputs_.size(); ++i) {
      if (inputs_[i].buffer == nullptr || inputs_[i].shape != feeds[i].shape) return false;
    }
    return prepared_;
  }

  // Choose shapes, size the buffers for them, and capture the graph.
  void prepare(const std::vector<Tensor>& feeds) {
    drop_graph();
    prepared_ = false;
    for (size_t i = 0; i < inputs_.size(); ++i) io_.set_shape(inputs_[i].spec->name, feeds[i].shape);
    for (Slot& slot : inputs_) fit(slot);
    for (Slot& slot : outputs_) fit(slot);
    // Deferred work of a new shape must be done before a capture: TensorRT's guide, "CUDA Graphs".
    enqueue();
    cuda_.synchronize(stream_);
    prepared_ = true;
    if (wants_graph_) capture();
  }

  void fit(Slot& slot) {
    slot.shape = io_.shape(slot.spec->name);
    if (std::any_of(slot.shape.begin(), slot.shape.end(), [](int64_t dim) { return dim < 0; })) {
      throw Error(
          name_ + ": the shape of " + slot.spec->name + " depends on the data: [" + shape_text(slot.shape) + "]",
          "Leave such operators (NonZero, NonMaxSuppression) out of the exported graph.");
    }
    slot.bytes = element_count(slot.shape, slot.spec->dtype) * size_bytes(slot.spec->dtype);
    const size_t needed = std::max<size_t>(slot.bytes, 1);  // an address is needed where there are no elements, too
    if (slot.buffer == nullptr || slot.buffer->size_bytes() < needed) {
      slot.buffer.reset();
      slot.buffer = std::make_unique<Buffer>(cuda_, needed);
    }
    io_.bind(slot.spec->name, slot.buffer->device());
  }

  void capture() {
    void* graph = nullptr;
    try {
      cuda_.begin_capture(stream_);
      const bool queued = io_.enqueue(stream_);
      graph = cuda_.end_capture(stream_);  // in any case, else the stream stays unusable
      if (!queued) throw refused();
      graph_ = cuda_.instantiate(graph);
    } catch (const Error& error) {
      std::fprintf(stderr, "no CUDA graph, every kernel is launched on its own: %s\n", error.what());
      wants_graph_ = false;
    }
    if (graph != nullptr) cuda_.destroy_graph(graph);
  }

  void enqueue() {
    if (!io_.enqueue(stream_)) throw refused();
  }

  Error refused() const {
    std::string shapes;
    for (const Slot& slot : inputs_) {
      shapes += (shapes.empty() ? "" : ", ") + slot.spec->name + " [" + shape_text(slot.shape) + "]";
    }
    return Error(name_ + " failed on " + shapes + tensorrt_.log().said(), kGpuMemory);
  }

  void drop_graph() {
    if (graph_ != nullptr) cuda_.destroy_executable(graph_);
    graph_ = nullptr;
  }

  TensorRt& tensorrt_;
  const Cuda& cuda_;
  const std::string& name_;
  const EngineTensors& tensors_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  ContextIo io_;
  void* stream_;
  std::vector<Slot> inputs_;
  std::vector<Slot> outputs_;
  void* graph_ = nullptr;
  bool prepared_ = false;
  bool wants_graph_ = true;
};

class TensorRtModel : public Model {
 public:
  TensorRtModel(TensorRt& tensorrt, const CudaDevice& device, const std::string& plan, const std::string& name,
                bool host_code, int dla_core)
      : tensorrt_(tensorrt),
        name_(name),
        gpu_(device.name),
        runtime_(tensorrt.make_runtime()),
        engine_(load_engine(tensorrt, *runtime_, plan, name, host_code, dla_core)),
        tensors_(tensors_of(*engine_)) {}

  const std::vector<TensorSpec>& inputs() const override { return tensors_.inputs; }
  const std::vector<TensorSpec>& outputs() const override { return tensors_.outputs; }
  std::string runtime() const override { return "tensorrt " + tensorrt_.version() + " on " + gpu_; }

  std::unique_ptr<Context> make_context() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::unique_ptr<nvinfer1::IExecutionContext> context(engine_->createExecutionContext());
    if (context == nullptr) {
      throw Error("TensorRT cannot make an execution context of " + name_ + tensorrt_.log().said(), kGpuMemory);
    }
#if !TLC_TENSORRT_FROM(10, 0)
    // Before 10, a profile belongs to one context, and an engine here has one profile.
    if (has_open_shapes() && has_context_) {
      throw Error("TensorRT " + tensorrt_.version() + " runs an engine with open dimensions in one context only",
                  "Open the engine once for each stream.");
    }
#endif
    has_context_ = true;
    return std::make_unique<TensorRtContext>(tensorrt_, name_, tensors_, *engine_, std::move(context));
  }

 private:
#if !TLC_TENSORRT_FROM(10, 0)
  bool has_open_shapes() const {
    for (const TensorSpec& spec : tensors_.inputs) {
      if (std::any_of(spec.shape.begin(), spec.shape.end(), [](int64_t dim) { return dim < 0; })) return true;
    }
    return false;
  }
#endif

  TensorRt& tensorrt_;
  const std::string name_;
  const std::string gpu_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  EngineTensors tensors_;
  std::mutex mutex_;
  bool has_context_ = false;
};

std::string read_plan(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error("cannot read plan " + path + ": " + std::strerror(errno), "Check the path.");
  return std::string(std::istreambuf_iterator<char>(file), {});
}

}  // namespace

bool has_tensorrt() { return true; }

std::string load_tensorrt(const OpenOptions& options) {
  Cuda::get();
  return "tensorrt " + TensorRt::get(options.library).version();
}

std::unique_ptr<Model> open_tensorrt(const std::string& path, const OpenOptions& options) {
  const std::string plan = read_plan(path);
  plan_version(plan, path);  // no plan at all: say so before anything is looked for
  const PlanRecord record = read_plan_record(path);
  const CudaDevice device = Cuda::get().device();
  TensorRt& tensorrt = TensorRt::get(options.library);
  check_plan(path, plan, record, tensorrt.version(), device.sm, device.name);
  if (record.stripped) {
    throw Error(
        path + " was built with --strip: it has no weights, and its outputs would mean nothing",
        "Put them in: tlc build " + record.onnx + " --target " + record.target + " --into " + path + " -o model.plan");
  }
  return std::make_unique<TensorRtModel>(tensorrt, device, plan, path, record.version_compatible,
                                         record.dla_core.value_or(-1));
}

std::unique_ptr<Model> open_tensorrt_bytes(const std::string& bytes, const OpenOptions& options) {
  plan_version(bytes, "the engine");
  const CudaDevice device = Cuda::get().device();
  return std::make_unique<TensorRtModel>(TensorRt::get(options.library), device, bytes, "the engine", false, -1);
}

}  // namespace tlc
