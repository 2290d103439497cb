// The part of OpenVINO's C API that tlc-run needs, declared here because devices have the library without headers.
//
// Names, parameters and structures as in src/bindings/c/include/openvino/c/ of openvinotoolkit/openvino (Apache-2.0).
// The numbers of element types are not declared: they moved between releases (see Types in openvino.cc).
#ifndef TLC_NATIVE_OPENVINO_API_H_
#define TLC_NATIVE_OPENVINO_API_H_

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "library.h"

namespace tlc {

struct OvCompiledModel;
struct OvCore;
struct OvModel;
struct OvPort;
struct OvRequest;
struct OvTensor;

using OvStatus = int;       // 0 is success
using OvElementType = int;  // an enumeration

struct OvShape {
  int64_t rank;
  int64_t* dims;
};

struct OvDimension {
  int64_t min;  // equal to max where the dimension is known
  int64_t max;
};

struct OvPartialShape {
  OvDimension rank;
  OvDimension* dims;
};

struct OvVersion {
  const char* build;  // such as "2026.4.1-22982-..."
  const char* description;
};

// The functions of a loaded libopenvino_c.
struct OvApi {
  explicit OvApi(const Library& loaded) : library(loaded) {}

  const Library& library;

// A pointer to the function ov_NAME of that type.
#define TLC_OV(name, ...) std::add_pointer_t<__VA_ARGS__> name = library.function<__VA_ARGS__>("ov_" #name)
  TLC_OV(get_openvino_version, OvStatus(OvVersion*));
  TLC_OV(version_free, void(OvVersion*));
  TLC_OV(get_last_err_msg, const char*());
  TLC_OV(get_error_info, const char*(OvStatus));
  TLC_OV(free, void(const char*));

  TLC_OV(core_create, OvStatus(OvCore**));
  TLC_OV(core_free, void(OvCore*));
  TLC_OV(core_read_model, OvStatus(const OvCore*, const char* path, const char* weights, OvModel**));
  TLC_OV(core_read_model_from_memory_buffer,
         OvStatus(const OvCore*, const char* bytes, size_t size_bytes, const OvTensor* weights, OvModel**));
  // `words` keys and values follow, all of them text.
  TLC_OV(core_compile_model,
         OvStatus(const OvCore*, const OvModel*, const char* device, size_t words, OvCompiledModel**, ...));

  TLC_OV(model_const_input_by_index, OvStatus(const OvModel*, size_t, OvPort**));
  TLC_OV(model_const_output_by_index, OvStatus(const OvModel*, size_t, OvPort**));
  TLC_OV(model_free, void(OvModel*));

  TLC_OV(compiled_model_inputs_size, OvStatus(const OvCompiledModel*, size_t*));
  TLC_OV(compiled_model_outputs_size, OvStatus(const OvCompiledModel*, size_t*));
  TLC_OV(compiled_model_input_by_index, OvStatus(const OvCompiledModel*, size_t, OvPort**));
  TLC_OV(compiled_model_output_by_index, OvStatus(const OvCompiledModel*, size_t, OvPort**));
  TLC_OV(compiled_model_create_infer_request, OvStatus(const OvCompiledModel*, OvRequest**));
  TLC_OV(compiled_model_free, void(OvCompiledModel*));

  TLC_OV(port_get_any_name, OvStatus(const OvPort*, char**));
  TLC_OV(port_get_partial_shape, OvStatus(const OvPort*, OvPartialShape*));
  TLC_OV(port_get_element_type, OvStatus(const OvPort*, OvElementType*));
  TLC_OV(output_const_port_free, void(OvPort*));
  TLC_OV(partial_shape_free, void(OvPartialShape*));
  TLC_OV(shape_free, OvStatus(OvShape*));

  TLC_OV(tensor_create, OvStatus(OvElementType, OvShape, OvTensor**));
  TLC_OV(tensor_create_from_host_ptr, OvStatus(OvElementType, OvShape, void*, OvTensor**));
  TLC_OV(tensor_get_shape, OvStatus(const OvTensor*, OvShape*));
  TLC_OV(tensor_get_byte_size, OvStatus(const OvTensor*, size_t*));
  TLC_OV(tensor_data, OvStatus(const OvTensor*, void**));
  TLC_OV(tensor_free, void(OvTensor*));

  TLC_OV(infer_request_set_input_tensor_by_index, OvStatus(OvRequest*, size_t, const OvTensor*));
  TLC_OV(infer_request_get_output_tensor_by_index, OvStatus(const OvRequest*, size_t, OvTensor**));
  TLC_OV(infer_request_infer, OvStatus(OvRequest*));
  TLC_OV(infer_request_free, void(OvRequest*));
#undef TLC_OV
};

}  // namespace tlc

#endif  // TLC_NATIVE_OPENVINO_API_H_
