#!/bin/sh
# Compile tlc-run's TensorRT backend with the real headers of six releases, and write what came out as a table.
#
#   benchmarks/tensorrt_headers.sh TENSORRT ONNX_TENSORRT TABLE [CUDA_INCLUDE...]
#
# TENSORRT and ONNX_TENSORRT are clones of NVIDIA/TensorRT and onnx/onnx-tensorrt, with all tags and branches; nothing
# of them is kept. CUDA_INCLUDE are folders with cuda_runtime_api.h and crt/ (default: /usr/local/cuda/include); the
# packages nvidia-cuda-runtime-cu12 and nvidia-cuda-nvcc-cu12 have one together. CXX names the compiler.
set -eu
tensorrt=$1 parser=$2 table=$3
shift 3
[ $# -gt 0 ] || set -- /usr/local/cuda/include
compiler=${CXX:-g++}
sources=$(cd "$(dirname "$0")/../runtime/native" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Release, its tag in NVIDIA/TensorRT, and the branch of onnx/onnx-tensorrt that has its NvOnnxParser.h: the latter's
# newest branch is 10.1, and from 10.16 on the header is in NVIDIA/TensorRT itself.
releases='8.2.1:8.2.1:8.2-GA 8.5.2:8.5.2:8.5-GA 8.6.1:v8.6.1:8.6-GA 10.3.0:v10.3.0:10.1-GA 10.13.0:v10.13.0:10.1-GA
11.1:v11.1:'

{
  echo "# The TensorRT backend against real headers"
  echo
  echo "\`benchmarks/tensorrt_headers.sh\`: every source of the backend compiled by $($compiler --version | head -n 1),"
  echo "\`-std=c++17 -Wall -Wextra -Werror\`. Symbols are those of TensorRT or CUDA that the objects want to be linked:"
  echo "none, because both libraries are loaded while tlc-run runs."
  echo
  echo "| TensorRT headers | ONNX parser header | CUDA headers | sources compiled | symbols to link |"
  echo "|---|---|---|---|---|"
} >"$work/table"

failed=0
for release in $releases; do
  name=${release%%:*} rest=${release#*:}
  tag=${rest%%:*} branch=${rest#*:}
  headers=$work/$name
  mkdir "$headers"
  for file in $(git -C "$tensorrt" ls-tree --name-only "$tag" include/); do
    case $file in *.h) git -C "$tensorrt" show "$tag:$file" >"$headers/$(basename "$file")" ;; esac
  done
  from="in the same release"
  if [ -n "$branch" ]; then
    git -C "$parser" show "$branch:NvOnnxParser.h" >"$headers/NvOnnxParser.h"
    from="onnx-tensorrt $branch"
  fi
  for cuda in "$@"; do
    version=$(sed -n 's/^#define CUDART_VERSION *\([0-9]*\).*/\1/p' "$cuda/cuda_runtime_api.h")
    done=0
    for source in tensorrt tensorrt_api tensorrt_build tensorrt_io; do
      if $compiler -std=c++17 -O2 -Wall -Wextra -Werror -I"$sources" -isystem "$headers" -isystem "$cuda" \
        -c "$sources/$source.cc" -o "$headers/$source.o" >&2; then
        done=$((done + 1))
      else
        failed=1
      fi
    done
    symbols=$(nm -u "$headers"/*.o | grep -c -E \
      ' (_Z[A-Z]*(8nvinfer1|12nvonnxparser)|[a-zA-Z]*_INTERNAL|getInfer|initLibNv|cuda[A-Z])' || true)
    rm -f "$headers"/*.o
    [ "$symbols" -eq 0 ] || failed=1
    echo "| $name | $from | $((version / 1000)).$((version % 1000 / 10)) | $done of 4 | $symbols |" >>"$work/table"
  done
done
cp "$work/table" "$table"
exit $failed
