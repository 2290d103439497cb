// The types of CUDA's runtime that TensorRT's interface mentions, for compiling without a CUDA toolkit.
#ifndef TLC_TESTS_CUDA_RUNTIME_API_H_
#define TLC_TESTS_CUDA_RUNTIME_API_H_

using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;

#endif  // TLC_TESTS_CUDA_RUNTIME_API_H_
