// Percentiles and means of latency samples, as runtime/statistics.py has them.
#ifndef TLC_NATIVE_STATS_H_
#define TLC_NATIVE_STATS_H_

#include <cstdint>
#include <optional>
#include <vector>

namespace tlc {

// Samples in the order of measuring, in nanoseconds.
using SamplesNs = std::vector<int64_t>;

// Return the ordinary median, the mean of the middle two of an even number; `samples` must not be empty.
double median_ns(SamplesNs samples);

// A percentile with the order statistics that bound it; a bound that the samples do not reach is empty.
struct QuantileNs {
  int percentile;
  int64_t ns;
  std::optional<int64_t> low_ns;
  std::optional<int64_t> high_ns;
};

// Return the nearest-rank percentile, the smallest sample with at least `percentile` % of all samples at or below it,
// with its 99 % confidence interval: each bound is missed with a probability of 0.5 % at most, whatever the
// distribution. H. A. David, H. N. Nagaraja, "Order Statistics", third edition, 2003, section 7.1. `percentile` is in
// [1, 100]; of 100, the maximum, there is no upper bound. `ordered` is ascending and not empty.
QuantileNs quantile_ns(const SamplesNs& ordered, int percentile);

// Return the largest l with P(X <= l - 1) <= `tail` for X of Binomial(n, share) and 0 < share < 1; 0 where there is
// none. `rest` is 1 - share.
size_t lower_place(size_t n, double share, double rest, double tail);

// Return the growth of resident memory per block: the median over ten segments, each taken at its least, so that a
// single step does not count and what every run adds does. 0 for fewer than twenty blocks.
double growth_bytes(const std::vector<int64_t>& resident_bytes);

}  // namespace tlc

#endif  // TLC_NATIVE_STATS_H_
