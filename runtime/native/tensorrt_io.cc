#include "tensorrt_io.h"

#include <algorithm>

#include "error.h"

namespace tlc {

namespace {

using nvinfer1::OptProfileSelector;

bool is_open(const Shape& shape) {
  return std::any_of(shape.begin(), shape.end(), [](int64_t dim) { return dim < 0; });
}

void require(bool accepted, const std::string& name, const Shape& shape) {
  if (accepted) return;
  throw Error("TensorRT refuses shape [" + shape_text(shape) + "] for input " + name,
              "Feed a shape within the engine's profile, or build with other shapes.");
}

// Inputs without open dimensions need not be in a profile.
template <typename Get>
ProfileShapes profile_of(const Shape& shape, Get get) {
  if (!is_open(shape)) return {shape, shape, shape};
  return {shape_of(get(OptProfileSelector::kMIN)), shape_of(get(OptProfileSelector::kOPT)),
          shape_of(get(OptProfileSelector::kMAX))};
}

}  // namespace

#if TLC_TENSORRT_FROM(8, 5)

EngineTensors tensors_of(const nvinfer1::ICudaEngine& engine) {
  EngineTensors tensors;
  for (int32_t i = 0; i < engine.getNbIOTensors(); ++i) {
    const char* name = engine.getIOTensorName(i);
    const TensorSpec spec{name, dtype_of(engine.getTensorDataType(name), name), shape_of(engine.getTensorShape(name))};
    if (engine.getTensorIOMode(name) != nvinfer1::TensorIOMode::kINPUT) {
      tensors.outputs.push_back(spec);
      continue;
    }
    tensors.inputs.push_back(spec);
    tensors.profiles.push_back(
        profile_of(spec.shape, [&](OptProfileSelector which) { return engine.getProfileShape(name, 0, which); }));
  }
  return tensors;
}

ContextIo::ContextIo(const nvinfer1::ICudaEngine&, nvinfer1::IExecutionContext& context) : context_(context) {}

void ContextIo::set_shape(const std::string& name, const Shape& shape) {
  require(context_.setInputShape(name.c_str(), dims_of(shape)), name, shape);
}

Shape ContextIo::shape(const std::string& name) const { return shape_of(context_.getTensorShape(name.c_str())); }

void ContextIo::bind(const std::string& name, void* address) {
  if (!context_.setTensorAddress(name.c_str(), address)) {
    throw Error("TensorRT refuses the memory for " + name, "Build the engine again on this machine.");
  }
}

bool ContextIo::enqueue(void* stream) { return context_.enqueueV3(static_cast<cudaStream_t>(stream)); }

#else

EngineTensors tensors_of(const nvinfer1::ICudaEngine& engine) {
  EngineTensors tensors;
  for (int32_t i = 0; i < engine.getNbBindings(); ++i) {
    const char* name = engine.getBindingName(i);
    const TensorSpec spec{name, dtype_of(engine.getBindingDataType(i), name), shape_of(engine.getBindingDimensions(i))};
    if (!engine.bindingIsInput(i)) {
      tensors.outputs.push_back(spec);
      continue;
    }
    tensors.inputs.push_back(spec);
    tensors.profiles.push_back(
        profile_of(spec.shape, [&](OptProfileSelector which) { return engine.getProfileDimensions(i, 0, which); }));
  }
  return tensors;
}

ContextIo::ContextIo(const nvinfer1::ICudaEngine& engine, nvinfer1::IExecutionContext& context) : context_(context) {
  for (int32_t i = 0; i < engine.getNbBindings(); ++i) index_[engine.getBindingName(i)] = i;
  addresses_.resize(index_.size());
}

void ContextIo::set_shape(const std::string& name, const Shape& shape) {
  require(context_.setBindingDimensions(index_.at(name), dims_of(shape)), name, shape);
}

Shape ContextIo::shape(const std::string& name) const {
  return shape_of(context_.getBindingDimensions(index_.at(name)));
}

void ContextIo::bind(const std::string& name, void* address) {
  addresses_[static_cast<size_t>(index_.at(name))] = address;
}

bool ContextIo::enqueue(void* stream) {
  return context_.enqueueV2(addresses_.data(), static_cast<cudaStream_t>(stream), nullptr);
}

#endif

}  // namespace tlc
