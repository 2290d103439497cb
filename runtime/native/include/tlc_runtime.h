/* The C API of tlc's runtime: load a bundle or a model, infer, free. For C99 and C++.
 *
 * - No function throws or ends the process. What can fail returns a tlc_status; tlc_last_error() has the sentence.
 * - A model may be used by several threads at once, a context by one at a time: make one context per thread.
 * - A model stays in memory until it and all of its contexts are freed, in any order.
 * - Pointers that the library gives out are the library's: read them, never free them.
 */
#ifndef TLC_RUNTIME_H_
#define TLC_RUNTIME_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define TLC_API __attribute__((visibility("default")))
#else
#define TLC_API
#endif

/* Raised by one for every addition. What is declared here stays as it is: a change that an application would have to
 * be compiled for makes a library of another name. */
#define TLC_RUNTIME_API_VERSION 1

/* The most dimensions of a tensor. */
#define TLC_MAX_RANK 8

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tlc_status {
  TLC_OK = 0,
  TLC_ERROR = 1,    /* the file, the input or the machine: see tlc_last_error() and tlc_last_hint() */
  TLC_MISUSE = 2,   /* an argument that no caller may pass, such as a null model */
  TLC_INTERNAL = 3, /* a mistake of the library, or no memory left */
  TLC_STATUS_FORCE_INT = 0x7fffffff
} tlc_status;

typedef enum tlc_dtype {
  TLC_FLOAT32 = 0,
  TLC_FLOAT16 = 1,
  TLC_FLOAT64 = 2,
  TLC_UINT8 = 3,
  TLC_INT8 = 4,
  TLC_INT32 = 5,
  TLC_INT64 = 6,
  TLC_BOOL = 7, /* one byte, 0 or 1 */
  TLC_DTYPE_FORCE_INT = 0x7fffffff
} tlc_dtype;

/* A loaded model. */
typedef struct tlc_model tlc_model;

/* A stream of inferences of one model, with its own buffers. */
typedef struct tlc_context tlc_context;

/* How to load a model. Zero means the default: `tlc_options options = {0}; options.struct_size = sizeof options;`.
 * Fields are only ever added at the end, and struct_size says which of them the application knows. */
typedef struct tlc_options {
  size_t struct_size;  /* sizeof(tlc_options) */
  int32_t threads;     /* inside one inference; 0: the target's of a bundle, 1 for a model */
  const char* backend; /* "onnxruntime", "openvino" or "tensorrt"; null: the target's of a bundle, "onnxruntime" */
  const char* library; /* path of that runtime's library; null: TLC_ORT_LIB or the system's search path */
  const char* plan;    /* TensorRT: path of the engine; null: NAME.plan beside NAME.tlc */
} tlc_options;

/* An input or output as the model declares it. */
typedef struct tlc_tensor_spec {
  const char* name; /* lives as long as the model */
  tlc_dtype dtype;
  int32_t rank;
  int64_t shape[TLC_MAX_RANK]; /* -1 where a dimension is open */
} tlc_tensor_spec;

/* Values in C order and in the machine's byte order. */
typedef struct tlc_tensor {
  const void* data;
  size_t size_bytes;
  tlc_dtype dtype;
  int32_t rank;
  int64_t shape[TLC_MAX_RANK];
} tlc_tensor;

/* Return TLC_RUNTIME_API_VERSION of the library that runs; an application that needs more refuses to start. */
TLC_API uint32_t tlc_api_version(void);

/* Return the version of tlc, such as "0.1.0". */
TLC_API const char* tlc_version(void);

/* Return what the calling thread's last failed call failed of, one sentence, and the next step; "" before any failure.
 * Both live until that thread's next failure. */
TLC_API const char* tlc_last_error(void);
TLC_API const char* tlc_last_hint(void);

/* Load NAME.tlc, a bundle, or a model file that the backend takes (ONNX, a TensorRT engine). `options` may be null.
 * A bundle's manifest, model and engine are checked against their SHA-256. Sets *model to null where it fails. */
TLC_API tlc_status tlc_model_load(const char* path, const tlc_options* options, tlc_model** model);

/* Free the model; null is allowed. */
TLC_API void tlc_model_free(tlc_model* model);

/* Return the runtime with its version, such as "onnxruntime 1.31.1"; null for a null model. */
TLC_API const char* tlc_model_runtime(const tlc_model* model);

/* Describe inputs and outputs; the index runs from 0. */
TLC_API size_t tlc_model_input_count(const tlc_model* model);
TLC_API size_t tlc_model_output_count(const tlc_model* model);
TLC_API tlc_status tlc_model_input(const tlc_model* model, size_t index, tlc_tensor_spec* spec);
TLC_API tlc_status tlc_model_output(const tlc_model* model, size_t index, tlc_tensor_spec* spec);

/* Return the number of classes that a bundle names, 0 where it names none, and the name of one in UTF-8, null where
 * there is none of that index. */
TLC_API size_t tlc_model_class_count(const tlc_model* model);
TLC_API const char* tlc_model_class(const tlc_model* model, size_t index);

/* Return the channels of the pictures that tlc_infer_pixels() takes: 1 (gray) or 3 (RGB); 0 where the model is no
 * bundle for pictures. */
TLC_API int32_t tlc_model_picture_channels(const tlc_model* model);

/* Make a context; null in *context where it fails. */
TLC_API tlc_status tlc_context_create(tlc_model* model, tlc_context** context);

/* Free the context; null is allowed. */
TLC_API void tlc_context_free(tlc_context* context);

/* Run the model once. `inputs` holds tlc_model_input_count() tensors in that order, whose data is read before the call
 * returns. `outputs` has room for tlc_model_output_count() tensors: their data lives in the context until its next
 * inference. */
TLC_API tlc_status tlc_infer(tlc_context* context, const tlc_tensor* inputs, size_t input_count, tlc_tensor* outputs,
                             size_t output_count);

/* Decode a JPEG or PNG file of `size_bytes` at `file`, prepare it as the bundle says, and run the model on it. */
TLC_API tlc_status tlc_infer_image(tlc_context* context, const void* file, size_t size_bytes, tlc_tensor* outputs,
                                   size_t output_count);

/* The same for pixels, such as a camera's: rows from the top, height x width x tlc_model_picture_channels() bytes
 * without gaps, RGB even where the model takes BGR. */
TLC_API tlc_status tlc_infer_pixels(tlc_context* context, const uint8_t* pixels, int32_t height, int32_t width,
                                    tlc_tensor* outputs, size_t output_count);

#ifdef __cplusplus
}
#endif

#endif /* TLC_RUNTIME_H_ */
