#include "stats.h"

#include <algorithm>
#include <cmath>

namespace tlc {

namespace {

constexpr double kTail = 0.005;     // of a 99 % confidence interval, on each side
constexpr double kRounding = 1e-9;  // relative; what sums of floating-point numbers lack or have too much
constexpr size_t kSegments = 10;

}  // namespace

double median_ns(SamplesNs samples) {
  const auto middle = samples.begin() + static_cast<std::ptrdiff_t>(samples.size() / 2);
  std::nth_element(samples.begin(), middle, samples.end());
  const auto high = static_cast<double>(*middle);
  if (samples.size() % 2 == 1) return high;
  return (static_cast<double>(*std::max_element(samples.begin(), middle)) + high) / 2;
}

QuantileNs quantile_ns(const SamplesNs& ordered, int percentile) {
  const size_t n = ordered.size();
  const size_t place = (static_cast<size_t>(percentile) * n + 99) / 100;  // 1-based; in integers, since 0.07 * 100 > 7
  QuantileNs found{percentile, ordered[place - 1], std::nullopt, std::nullopt};
  if (percentile == 100) {
    found.low_ns = found.ns;
    return found;
  }
  const double share = percentile / 100.0, rest = (100 - percentile) / 100.0;
  const size_t low = lower_place(n, share, rest, kTail);
  const size_t high = lower_place(n, rest, share, kTail);  // P(X >= n - k) = P(n - X <= k)
  if (low > 0) found.low_ns = ordered[low - 1];
  if (high > 0) found.high_ns = ordered[n - high];
  return found;
}

size_t lower_place(size_t n, double share, double rest, double tail) {
  double log_term = static_cast<double>(n) * std::log(rest);  // of P(X = 0)
  double sum = 0;
  for (size_t k = 0; k < n; ++k) {
    sum += std::exp(log_term);
    if (sum > tail * (1 + kRounding)) return k;
    log_term += std::log(static_cast<double>(n - k) / static_cast<double>(k + 1)) + std::log(share / rest);
  }
  return n;
}

double growth_bytes(const std::vector<int64_t>& resident_bytes) {
  const size_t n = resident_bytes.size();
  if (n < 2 * kSegments) return 0;
  // Segments of numpy's array_split: the first n % 10 have one element more.
  std::vector<int64_t> least;
  auto begin = resident_bytes.begin();
  for (size_t i = 0; i < kSegments; ++i) {
    const auto end = begin + static_cast<std::ptrdiff_t>(n / kSegments + (i < n % kSegments ? 1 : 0));
    least.push_back(*std::min_element(begin, end));
    begin = end;
  }
  std::vector<int64_t> steps;
  for (size_t i = 1; i < kSegments; ++i) steps.push_back(least[i] - least[i - 1]);
  return median_ns(steps) * static_cast<double>(kSegments) / static_cast<double>(n);
}

}  // namespace tlc
