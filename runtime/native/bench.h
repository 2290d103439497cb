// Measure one model.
#ifndef TLC_NATIVE_BENCH_H_
#define TLC_NATIVE_BENCH_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "args.h"
#include "stats.h"

namespace tlc {

struct BenchInput {
  std::string name;
  std::string dtype;
  Shape shape;
};

struct BenchResult {
  std::string model;
  int64_t size_bytes;
  std::string runtime_version;
  int threads;
  uint64_t seed;
  std::vector<BenchInput> inputs;
  int warmup_runs;                           // that were really made
  std::optional<int64_t> peak_memory_bytes;  // over that of the process with the library loaded and no model
  SamplesNs samples_ns;
};

// Load the model, warm up, and run it; throws Error.
BenchResult bench(const Args& args);

}  // namespace tlc

#endif  // TLC_NATIVE_BENCH_H_
