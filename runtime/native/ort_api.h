// The part of ONNX Runtime's C API that tlc-run needs, declared here because its packages come without headers.
//
// OrtApi is a table of function pointers to which every release only appends, so the first 131 entries of
// onnxruntime_c_api.h (API version 5, MIT licence) are the same in every ONNX Runtime since 1.5. Entries that are not
// used here are kept as gaps; the assertions at the end hold each used entry to its published position.
#ifndef TLC_NATIVE_ORT_API_H_
#define TLC_NATIVE_ORT_API_H_

#include <cstddef>
#include <cstdint>

namespace tlc {

struct OrtAllocator;
struct OrtEnv;
struct OrtMemoryInfo;
struct OrtSession;
struct OrtSessionOptions;
struct OrtStatus;
struct OrtTensorInfo;  // OrtTensorTypeAndShapeInfo
struct OrtTypeInfo;
struct OrtValue;

// ONNXTensorElementDataType; the values are those of onnx.TensorProto.DataType.
enum OrtElementType : int {
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kInt32 = 6,
  kInt64 = 7,
  kBool = 9,
  kFloat16 = 10,
  kDouble = 11,
};

constexpr uint32_t kApiVersion = 5;    // ONNX Runtime 1.5
constexpr int kLogFatal = 4;           // ORT_LOGGING_LEVEL_FATAL
constexpr int kAllOptimizations = 99;  // ORT_ENABLE_ALL
constexpr int kArenaAllocator = 1;     // OrtArenaAllocator
constexpr int kDefaultMemory = 0;      // OrtMemTypeDefault

struct OrtApi {
  using Gap = void (*)();

  Gap gap_0[2];
  const char* (*GetErrorMessage)(const OrtStatus*);                          // 2
  OrtStatus* (*CreateEnv)(int log_level, const char* log_id, OrtEnv** out);  // 3
  Gap gap_4[3];
  OrtStatus* (*CreateSession)(const OrtEnv*, const char* path, const OrtSessionOptions*, OrtSession** out);  // 7
  OrtStatus* (*CreateSessionFromArray)(const OrtEnv*, const void* model, size_t size_bytes, const OrtSessionOptions*,
                                       OrtSession** out);  // 8
  OrtStatus* (*Run)(OrtSession*, const void* run_options, const char* const* input_names, const OrtValue* const* inputs,
                    size_t input_count, const char* const* output_names, size_t output_count, OrtValue** outputs);  // 9
  OrtStatus* (*CreateSessionOptions)(OrtSessionOptions** out);  // 10
  Gap gap_11[3];
  OrtStatus* (*EnableProfiling)(OrtSessionOptions*, const char* file_prefix);  // 14
  Gap gap_15[8];
  OrtStatus* (*SetSessionGraphOptimizationLevel)(OrtSessionOptions*, int level);  // 23
  OrtStatus* (*SetIntraOpNumThreads)(OrtSessionOptions*, int threads);            // 24
  OrtStatus* (*SetInterOpNumThreads)(OrtSessionOptions*, int threads);            // 25
  Gap gap_26[4];
  OrtStatus* (*SessionGetInputCount)(const OrtSession*, size_t* out);   // 30
  OrtStatus* (*SessionGetOutputCount)(const OrtSession*, size_t* out);  // 31
  Gap gap_32[1];
  OrtStatus* (*SessionGetInputTypeInfo)(const OrtSession*, size_t index, OrtTypeInfo** out);   // 33
  OrtStatus* (*SessionGetOutputTypeInfo)(const OrtSession*, size_t index, OrtTypeInfo** out);  // 34
  Gap gap_35[1];
  OrtStatus* (*SessionGetInputName)(const OrtSession*, size_t index, OrtAllocator*, char** out);   // 36
  OrtStatus* (*SessionGetOutputName)(const OrtSession*, size_t index, OrtAllocator*, char** out);  // 37
  Gap gap_38[11];
  OrtStatus* (*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo*, void* data, size_t size_bytes,
                                               const int64_t* shape, size_t rank, OrtElementType,
                                               OrtValue** out);  // 49
  Gap gap_50[1];
  OrtStatus* (*GetTensorMutableData)(OrtValue*, void** out);  // 51, not owned
  Gap gap_52[3];
  OrtStatus* (*CastTypeInfoToTensorInfo)(const OrtTypeInfo*, const OrtTensorInfo** out);  // 55, not owned
  Gap gap_56[4];
  OrtStatus* (*GetTensorElementType)(const OrtTensorInfo*, OrtElementType* out);               // 60
  OrtStatus* (*GetDimensionsCount)(const OrtTensorInfo*, size_t* out);                         // 61
  OrtStatus* (*GetDimensions)(const OrtTensorInfo*, int64_t* dims, size_t rank);               // 62, -1 where dynamic
  OrtStatus* (*GetSymbolicDimensions)(const OrtTensorInfo*, const char** names, size_t rank);  // 63, not owned
  Gap gap_64[1];
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue*, OrtTensorInfo** out);  // 65
  Gap gap_66[3];
  OrtStatus* (*CreateCpuMemoryInfo)(int allocator_type, int memory_type, OrtMemoryInfo** out);  // 69
  Gap gap_70[6];
  OrtStatus* (*AllocatorFree)(OrtAllocator*, void*);  // 76
  Gap gap_77[1];
  OrtStatus* (*GetAllocatorWithDefaultOptions)(OrtAllocator** out);  // 78, not owned
  Gap gap_79[13];
  void (*ReleaseEnv)(OrtEnv*);                // 92
  void (*ReleaseStatus)(OrtStatus*);          // 93
  void (*ReleaseMemoryInfo)(OrtMemoryInfo*);  // 94
  void (*ReleaseSession)(OrtSession*);        // 95
  void (*ReleaseValue)(OrtValue*);            // 96
  Gap gap_97[1];
  void (*ReleaseTypeInfo)(OrtTypeInfo*);                  // 98
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorInfo*);  // 99
  void (*ReleaseSessionOptions)(OrtSessionOptions*);      // 100
  Gap gap_101[9];
  OrtStatus* (*SessionEndProfiling)(OrtSession*, OrtAllocator*, char** file);  // 110
  Gap gap_111[19];
  OrtStatus* (*AddSessionConfigEntry)(OrtSessionOptions*, const char* key, const char* value);  // 130
};

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

#define TLC_ORT_SLOT(name, slot) \
  static_assert(offsetof(OrtApi, name) == (slot) * sizeof(void*), #name " must be entry " #slot)
TLC_ORT_SLOT(GetErrorMessage, 2);
TLC_ORT_SLOT(CreateEnv, 3);
TLC_ORT_SLOT(CreateSession, 7);
TLC_ORT_SLOT(CreateSessionFromArray, 8);
TLC_ORT_SLOT(Run, 9);
TLC_ORT_SLOT(CreateSessionOptions, 10);
TLC_ORT_SLOT(EnableProfiling, 14);
TLC_ORT_SLOT(SetSessionGraphOptimizationLevel, 23);
TLC_ORT_SLOT(SetIntraOpNumThreads, 24);
TLC_ORT_SLOT(SetInterOpNumThreads, 25);
TLC_ORT_SLOT(SessionGetInputCount, 30);
TLC_ORT_SLOT(SessionGetOutputCount, 31);
TLC_ORT_SLOT(SessionGetInputTypeInfo, 33);
TLC_ORT_SLOT(SessionGetOutputTypeInfo, 34);
TLC_ORT_SLOT(SessionGetInputName, 36);
TLC_ORT_SLOT(SessionGetOutputName, 37);
TLC_ORT_SLOT(CreateTensorWithDataAsOrtValue, 49);
TLC_ORT_SLOT(GetTensorMutableData, 51);
TLC_ORT_SLOT(CastTypeInfoToTensorInfo, 55);
TLC_ORT_SLOT(GetTensorElementType, 60);
TLC_ORT_SLOT(GetDimensionsCount, 61);
TLC_ORT_SLOT(GetDimensions, 62);
TLC_ORT_SLOT(GetSymbolicDimensions, 63);
TLC_ORT_SLOT(GetTensorTypeAndShape, 65);
TLC_ORT_SLOT(CreateCpuMemoryInfo, 69);
TLC_ORT_SLOT(AllocatorFree, 76);
TLC_ORT_SLOT(GetAllocatorWithDefaultOptions, 78);
TLC_ORT_SLOT(ReleaseEnv, 92);
TLC_ORT_SLOT(ReleaseStatus, 93);
TLC_ORT_SLOT(ReleaseMemoryInfo, 94);
TLC_ORT_SLOT(ReleaseSession, 95);
TLC_ORT_SLOT(ReleaseValue, 96);
TLC_ORT_SLOT(ReleaseTypeInfo, 98);
TLC_ORT_SLOT(ReleaseTensorTypeAndShapeInfo, 99);
TLC_ORT_SLOT(ReleaseSessionOptions, 100);
TLC_ORT_SLOT(SessionEndProfiling, 110);
TLC_ORT_SLOT(AddSessionConfigEntry, 130);
#undef TLC_ORT_SLOT

}  // namespace tlc

#endif  // TLC_NATIVE_ORT_API_H_
