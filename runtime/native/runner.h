// One model run in blocks and timed, as runtime/worker.py does it: the same steps, the same numbers.
#ifndef TLC_NATIVE_RUNNER_H_
#define TLC_NATIVE_RUNNER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend.h"
#include "input.h"
#include "opening.h"
#include "profile.h"
#include "stats.h"

namespace tlc {

struct RunRequest {
  Source source;
  int streams = 1;   // inferences at once, each in a session of its own
  InputSizes sizes;  // of inputs that are made up
  // .npz of real inputs, run in turns; empty: sample_feeds(), but of a bundle whose open sizes nobody gave, its golden
  // inputs.
  std::string feeds;
  uint64_t seed = 0;
};

// What loading found.
struct Opened {
  int64_t load_ns;
  int64_t first_ns;     // the first inference after loading
  int64_t empty_bytes;  // resident, with the runtime's library and no model
  int64_t empty_peak_bytes;
  int64_t loaded_bytes;
  std::string runtime;                                // with its version
  std::vector<std::pair<std::string, Shape>> shapes;  // of every input
  std::vector<std::string> assumed;                   // open dimensions taken to be 1
  int64_t overhead_ns;  // that timing adds to a sample: median of timing a call that does nothing
};

struct Warmed {
  int runs;
  bool stable;   // whether the medians of the last two windows differ by less than 2 %
  int block;     // runs that make a block
  bool lead_in;  // whether a block begins with an untimed run
};

struct Block {
  SamplesNs samples_ns;  // of one stream after the other
  int64_t wall_ns;
  int64_t cpu_ns;  // of the whole process
  int64_t resident_bytes;
  int64_t peak_bytes;
};

struct RanFor {
  int64_t runs;
  double seconds;
};

class BlockRunner {
 public:
  // Load the runtime, then the model once per stream, and run each once. Throws Error.
  explicit BlockRunner(const RunRequest& request);

  const Opened& opened() const { return opened_; }

  // Run until the time of a run no longer changes: 40 runs and 200 ms at least, 1 s at most.
  Warmed warm();

  // Time `runs` runs on every stream at once, feeds in turns from the first on.
  Block block(int runs, bool lead_in);

  // Run on one stream for some seconds, in which a counter of energy is read.
  RanFor run_for(double seconds);

  // Time the layers over `runs` runs of the first feeds, in a session of its own.
  std::vector<LayerTime> profile(int runs) { return layer_times(source_, feeds_[0], runs); }

 private:
  void choose_feeds(const RunRequest& request, const std::vector<TensorSpec>& inputs);
  void run(size_t stream, const Feeds& feeds) { contexts_[stream]->run(feeds, outputs_[stream]); }
  void time_runs(size_t stream, size_t first, int runs, SamplesNs& samples);
  void time_at_once(int runs, std::vector<SamplesNs>& samples);

  Source source_;
  std::vector<std::unique_ptr<Model>> models_;
  std::vector<std::unique_ptr<Context>> contexts_;  // destroyed before their models
  std::vector<std::vector<Tensor>> outputs_;
  std::vector<Feeds> feeds_;
  Opened opened_;
};

// Return how many runs of `p50_ms` make a block: as many as take 4 ms and 8 at least, fewer where those take more than
// 200 ms; a multiple of the number of feeds, so that each has its place.
int block_runs(double p50_ms, int feeds);

}  // namespace tlc

#endif  // TLC_NATIVE_RUNNER_H_
