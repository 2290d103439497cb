// How much memory a builder may take, what its words say about it, and where its timings are kept: as
// export/engine_limits.py and export/engine_process.py.
#ifndef TLC_NATIVE_BUILD_LIMITS_H_
#define TLC_NATIVE_BUILD_LIMITS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cuda.h"

namespace tlc {

// Sizes in bytes by TensorRT's names of memory pools, in order.
using Pools = std::vector<std::pair<std::string, int64_t>>;

// Return limits of the pools. The workspace is what the caller asks for, else the target's, at most half of the GPU
// memory that is free; where CPU and GPU share it, a quarter of `available_bytes`. From 8.6 on, the latter also limits
// TACTIC_DRAM, what a kernel may take while it is tried: by default three quarters of all memory, so that trying
// kernels gets other processes killed.
Pools pool_limits(int64_t target_workspace_bytes, const CudaDevice& gpu, const std::string& tensorrt,
                  std::optional<int64_t> available_bytes, std::optional<int64_t> workspace_bytes);

// Return limits with half the workspace, for another try after memory ran out; none when it is at its least.
std::optional<Pools> smaller(const Pools& pools);

// Return limits with four times the workspace, for a layer that no kernel fits; none when that much is not free.
std::optional<Pools> larger(const Pools& pools, int64_t free_bytes);

// Return "WORKSPACE 1024 MiB, TACTIC_DRAM 2048 MiB, level 2".
std::string limits_text(const Pools& pools, std::optional<int> builder_level);

enum class Cause { kMemory, kNoKernel, kOther };

// Tell from TensorRT's words whether memory ran out, or no kernel fits a layer.
Cause cause_of(const std::string& words);

// Return whether `version`, such as "10.3.0", is that release or a later one.
bool is_from(const std::string& version, int major, int minor);

// Return where timings of this TensorRT, GPU and power mode are kept, the same file as tlc build's.
std::string timing_cache_path(const std::string& tensorrt, const CudaDevice& gpu, const std::string& power_mode);

}  // namespace tlc

#endif  // TLC_NATIVE_BUILD_LIMITS_H_
