// Time of each layer of a model, as the runtime that runs it says: runtime/profile.py.
#ifndef TLC_NATIVE_PROFILE_H_
#define TLC_NATIVE_PROFILE_H_

#include <istream>
#include <string>
#include <vector>

#include "input.h"
#include "opening.h"

namespace tlc {

// Time of one layer in one inference.
struct LayerTime {
  std::string name;
  std::string kind;  // operator
  double ms;
  double ratio;  // share of the sum over layers
};

// Return the time of each layer over `runs` runs of `feeds` after ten others, in the order of execution: ONNX Runtime's
// profiler's time of each node of the optimised graph, mean of the middle half of the runs; a node with a graph inside
// counts as a whole. The model is opened once more. Throws Error for other runtimes.
std::vector<LayerTime> layer_times(const Source& source, const Feeds& feeds, int runs);

// Return the layers of ONNX Runtime's profile, of which the last `runs` runs count. It writes Chrome's trace format, an
// event a line, so that a long one is read in constant memory. Throws Error for a line that is none.
// https://onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html
std::vector<LayerTime> read_ort_profile(std::istream& trace, int runs);

// Return LayerTime of runtime/bench_report.py.
std::string json_value(const LayerTime& layer);

}  // namespace tlc

#endif  // TLC_NATIVE_PROFILE_H_
