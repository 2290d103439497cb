# TensorRT's engines: compiled where its headers are, as on a Jetson. libnvinfer itself is loaded when tlc-run runs.
set(TLC_TENSORRT AUTO CACHE STRING "Build and run TensorRT engines: ON, OFF, or AUTO, where the headers are found")
set(TLC_TENSORRT_SOURCES
  "${CMAKE_CURRENT_SOURCE_DIR}/runtime/native/tensorrt.cc"
  "${CMAKE_CURRENT_SOURCE_DIR}/runtime/native/tensorrt_api.cc"
  "${CMAKE_CURRENT_SOURCE_DIR}/runtime/native/tensorrt_build.cc"
  "${CMAKE_CURRENT_SOURCE_DIR}/runtime/native/tensorrt_io.cc")

find_path(TLC_NVINFER_INCLUDE NvInfer.h)
find_path(TLC_NVONNXPARSER_INCLUDE NvOnnxParser.h)
find_path(TLC_CUDA_INCLUDE cuda_runtime_api.h PATHS /usr/local/cuda/include)
set(TLC_HAS_TENSORRT OFF)
if(TLC_NVINFER_INCLUDE AND TLC_NVONNXPARSER_INCLUDE AND TLC_CUDA_INCLUDE AND NOT TLC_TENSORRT STREQUAL "OFF")
  set(TLC_HAS_TENSORRT ON)
elseif(TLC_TENSORRT STREQUAL "ON")
  message(FATAL_ERROR "TLC_TENSORRT is ON, and NvInfer.h (${TLC_NVINFER_INCLUDE}), NvOnnxParser.h "
    "(${TLC_NVONNXPARSER_INCLUDE}) or cuda_runtime_api.h (${TLC_CUDA_INCLUDE}) was not found: set TLC_NVINFER_INCLUDE, "
    "TLC_NVONNXPARSER_INCLUDE and TLC_CUDA_INCLUDE to their folders")
endif()

if(TLC_HAS_TENSORRT)
  message(STATUS "TensorRT: headers in ${TLC_NVINFER_INCLUDE}")
  target_sources(tlc_native PRIVATE ${TLC_TENSORRT_SOURCES})
  target_include_directories(tlc_native SYSTEM PRIVATE
    "${TLC_NVINFER_INCLUDE}" "${TLC_NVONNXPARSER_INCLUDE}" "${TLC_CUDA_INCLUDE}")
else()
  message(STATUS "TensorRT: left out, or its headers were not found; engines will be refused")
  target_sources(tlc_native PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}/runtime/native/tensorrt_absent.cc")
endif()
