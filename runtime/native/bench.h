// What `tlc-run bench` measures: one model, one process, one launch.
#ifndef TLC_NATIVE_BENCH_H_
#define TLC_NATIVE_BENCH_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "args.h"
#include "environment.h"
#include "health.h"
#include "power.h"
#include "runner.h"

namespace tlc {

struct BenchResult {
  std::string name;
  std::string path;
  std::string sha256;
  int64_t size_bytes;  // of the model's file; in a bundle, of the member to deploy
  uint64_t seed;
  int threads;
  int streams;
  Opened opened;
  Warmed warmed;
  std::vector<Block> blocks;
  std::optional<Energy> energy;
  std::optional<std::vector<LayerTime>> layers;  // with --profile
  std::vector<std::string> energy_problems;      // why there is no counter
  JsonObject environment;
  std::vector<Warning> warnings;

  int block_runs() const { return warmed.block * streams; }
  int batch() const;
  SamplesNs samples_ns() const;         // of all blocks, in the order of measuring
  double growth_bytes_per_run() const;  // of resident memory
};

// Load the model, warm up, and run it; throws Error.
BenchResult bench(const Args& args);

}  // namespace tlc

#endif  // TLC_NATIVE_BENCH_H_
