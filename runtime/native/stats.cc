#include "stats.h"

#include <algorithm>
#include <numeric>

namespace tlc {

namespace {
constexpr double kNsPerMs = 1e6;
}

int64_t percentile_ns(SamplesNs samples, int rank) {
  const size_t position = (static_cast<size_t>(rank) * samples.size() + 99) / 100;  // 1-based
  const auto nth = samples.begin() + static_cast<std::ptrdiff_t>(std::max<size_t>(position, 1) - 1);
  std::nth_element(samples.begin(), nth, samples.end());
  return *nth;
}

Summary summarise(const SamplesNs& samples) {
  const auto total_ns = std::accumulate(samples.begin(), samples.end(), int64_t{0});
  Summary summary;
  summary.p50_ms = static_cast<double>(percentile_ns(samples, 50)) / kNsPerMs;
  summary.p90_ms = static_cast<double>(percentile_ns(samples, 90)) / kNsPerMs;
  summary.p99_ms = static_cast<double>(percentile_ns(samples, 99)) / kNsPerMs;
  summary.mean_ms = static_cast<double>(total_ns) / kNsPerMs / static_cast<double>(samples.size());
  summary.min_ms = static_cast<double>(*std::min_element(samples.begin(), samples.end())) / kNsPerMs;
  summary.throughput_per_s = 1000.0 / summary.mean_ms;
  return summary;
}

}  // namespace tlc
