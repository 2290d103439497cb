// Percentiles and means of latency samples.
#ifndef TLC_NATIVE_STATS_H_
#define TLC_NATIVE_STATS_H_

#include <cstdint>
#include <vector>

namespace tlc {

// Samples in the order of measuring, in nanoseconds.
using SamplesNs = std::vector<int64_t>;

// Return the nearest-rank percentile: the smallest sample with at least `rank` % of all samples at or below it.
// `rank` is a whole number in [1, 100], because 0.07 * 100 rounds up to 8; `samples` must not be empty.
int64_t percentile_ns(SamplesNs samples, int rank);

struct Summary {
  double p50_ms;
  double p90_ms;
  double p99_ms;
  double mean_ms;
  double min_ms;
  double throughput_per_s;  // inferences a second in a closed loop: 1000 / mean_ms
};

// Summarise samples, of which there must be at least one.
Summary summarise(const SamplesNs& samples);

}  // namespace tlc

#endif  // TLC_NATIVE_STATS_H_
