#include "health.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <ctime>

#include "machine.h"
#include "sysfs.h"

namespace tlc {

namespace {

// The limits of runtime/health.py.
constexpr double kOthersLimitRatio = 0.05;
constexpr double kStealLimitRatio = 0.01;
constexpr double kFirstRunLimit = 5.0;
constexpr double kFirstRunWorthMs = 20.0;
constexpr double kSlowRunsLimit = 1.5;
constexpr double kGrowthLimitBytes = 1 << 20;
constexpr double kTicksS = 0.05;  // each core's counters are off by one tick at both ends
constexpr double kNsPerMs = 1e6;

std::string format(const char* pattern, double value) {
  char text[64];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

std::string fixed(double value, int digits) { return format(("%." + std::to_string(digits) + "f").c_str(), value); }

template <typename T>
std::string joined(const T& parts, const char* separator) {
  std::string text;
  for (const auto& part : parts) text += (text.empty() ? "" : separator) + part;
  return text;
}

// Seconds of the usable cores from /proc/stat, whose columns proc(5) names.
void read_cpu_times(const std::string& root, Snapshot& snapshot) {
  cpu_set_t usable;
  if (sched_getaffinity(0, sizeof usable, &usable) != 0) return;
  const double tick = static_cast<double>(sysconf(_SC_CLK_TCK));
  double busy = 0, steal = 0, total = 0;
  bool any = false;
  for (const std::string& line : lines_of(read_text(root + "proc/stat").value_or(""))) {
    const std::vector<std::string> words = words_of(line);
    if (words.size() < 9 || words[0].size() < 4 || words[0].compare(0, 3, "cpu") != 0) continue;
    const int core = std::atoi(words[0].c_str() + 3);
    if (core >= CPU_SETSIZE || !CPU_ISSET(static_cast<size_t>(core), &usable)) continue;
    double columns[8];
    for (size_t i = 0; i < 8; ++i) columns[i] = std::atof(words[i + 1].c_str()) / tick;
    // user, nice, system, idle, waiting, irq, soft irq, steal; guests are counted in user and nice already
    busy += columns[0] + columns[1] + columns[2] + columns[5] + columns[6];
    steal += columns[7];
    total += columns[3] + columns[4];
    any = true;
  }
  if (!any) return;
  snapshot.busy_s = busy;
  snapshot.steal_s = steal;
  snapshot.total_s = busy + steal + total;
}

void add_throttled(const Snapshot& before, const Snapshot& after, const std::string& root,
                   std::vector<Warning>& warnings) {
  std::vector<std::string> causes;
  for (const auto& count : after.throttle_counts) {
    const auto early = before.throttle_counts.find(count.first);
    const int64_t rise = count.second - (early == before.throttle_counts.end() ? 0 : early->second);
    if (rise > 0) causes.push_back("its counter of " + count.first + " rose by " + std::to_string(rise));
  }
  for (const auto& trip : after.trips_c) {
    const auto now = after.temperatures_c.find(trip.first);
    if (now == after.temperatures_c.end() || now->second < trip.second) continue;
    causes.push_back(trip.first + " is at " + fixed(now->second, 0) + " °C (limit " + fixed(trip.second, 0) + ")");
  }
  if (!causes.empty()) {
    warnings.push_back({"throttled", "",
                        "The machine slowed itself down: " + joined(causes, "; ") +
                            ". Cool it, or give it the power that it needs, and measure again."});
  }
  const int64_t stops = after.quota_stops.value_or(0) - before.quota_stops.value_or(0);
  if (before.quota_stops && after.quota_stops && stops > 0) {
    warnings.push_back({"throttled", "",
                        "The container's CPU quota (" + cpu_quota(root).value_or("unknown") +
                            ": microseconds in a period) stopped it in " + std::to_string(stops) +
                            " periods (limit 0). Raise the quota or lower --threads, and measure again."});
  }
}

void add_noisy(const Snapshot& before, const Snapshot& after, std::vector<Warning>& warnings) {
  if (!before.total_s || !after.total_s) return;
  const double busy_s = *after.busy_s - *before.busy_s, steal_s = *after.steal_s - *before.steal_s;
  const double total_s = *after.total_s - *before.total_s;
  if (total_s <= 0) return;
  const double others_s = busy_s - (after.own_cpu_s - before.own_cpu_s);
  if (others_s > kOthersLimitRatio * total_s + kTicksS) {
    warnings.push_back({"noisy_neighbour", "",
                        "Other work took " + fixed(100 * others_s / total_s, 0) +
                            " % of the usable cores' time (limit " + fixed(100 * kOthersLimitRatio, 0) +
                            " %). Stop it and measure again."});
  }
  if (steal_s > kStealLimitRatio * (busy_s + steal_s) + kTicksS) {
    warnings.push_back({"noisy_neighbour", "",
                        "The host gave " + fixed(100 * steal_s / (busy_s + steal_s), 1) +
                            " % of the CPU time that this virtual machine wanted to others (limit " +
                            fixed(100 * kStealLimitRatio, 0) +
                            " %). Measure on a machine, or an instance, with cores of its own."});
  }
}

void add_not_locked(const std::string& root, std::vector<Warning>& warnings) {
  const auto locked = clocks_locked(root);
  if (locked.value_or(false)) return;
  const std::string board = read_text(root + "proc/device-tree/model").value_or("");
  if (locked && board.find("Jetson") != std::string::npos) {
    warnings.push_back({"clocks_not_locked", "",
                        "The clocks of this Jetson are free to change. Run `sudo jetson_clocks` and measure again."});
    return;
  }
  std::vector<std::string> governors;
  int64_t low = 0, high = 0;
  for (const CpuPolicy& policy : cpu_policies(root)) {
    if (!policy.governor || *policy.governor == "performance") continue;
    governors.push_back(*policy.governor);
    if (!policy.min_khz || !policy.max_khz) continue;
    low = high == 0 ? *policy.min_khz : std::min(low, *policy.min_khz);
    high = std::max(high, *policy.max_khz);
  }
  if (governors.empty() || (high > 0 && low == high)) return;
  std::sort(governors.begin(), governors.end());
  governors.erase(std::unique(governors.begin(), governors.end()), governors.end());
  const std::string span = high == 0 ? ""
                                     : " between " + fixed(static_cast<double>(low) / 1000, 0) + " and " +
                                           fixed(static_cast<double>(high) / 1000, 0) + " MHz";
  warnings.push_back({"clocks_not_locked", "",
                      "The governor (" + joined(governors, ", ") + ") moves the cores' clocks" + span +
                          ". For repeatable numbers run `sudo cpupower frequency-set -g performance`; to see what "
                          "users will, leave it."});
}

double p50_ms(const Measured& measured) {
  SamplesNs ordered = measured.samples_ns;
  std::sort(ordered.begin(), ordered.end());
  return static_cast<double>(quantile_ns(ordered, 50).ns) / kNsPerMs;
}

// By what factor runs are slower than the fastest at their place in a block: median over the places, which are compared
// each by itself, since the inputs of a block may be of different lengths.
double slowdown(const Measured& measured) {
  const auto block = static_cast<size_t>(measured.block);
  std::vector<int64_t> ratios;  // in millionths
  for (size_t place = 0; place < block; ++place) {
    SamplesNs own;
    for (size_t i = place; i < measured.samples_ns.size(); i += block) own.push_back(measured.samples_ns[i]);
    const auto least = static_cast<double>(*std::min_element(own.begin(), own.end()));
    ratios.push_back(std::llround(median_ns(own) / least * 1e6));
  }
  return median_ns(ratios) / 1e6;
}

// ceil(log(0.01) / log(share)): the largest of n is below the quantile `share` with probability share^n. S. S. Wilks,
// Annals of Mathematical Statistics 12(1), 1941.
size_t samples_needed(int percentile) {
  return static_cast<size_t>(std::ceil(std::log(0.01) / std::log(percentile / 100.0) * (1 - 1e-9)));
}

void add_few(const Measured& measured, std::vector<Warning>& warnings) {
  std::vector<std::string> needs;
  for (const int percentile : {90, 95, 99}) {
    const size_t needed = samples_needed(percentile);
    if (measured.samples_ns.size() >= needed) continue;
    needs.push_back("p" + std::to_string(percentile) + " needs " + std::to_string(needed));
  }
  if (needs.empty()) return;
  warnings.push_back({"too_few_samples", measured.name,
                      measured.name + " has " + std::to_string(measured.samples_ns.size()) +
                          " samples; to be bounded with 99 % confidence, " + joined(needs, ", ") +
                          ". Take these percentiles as information, or measure for longer."});
}

void add_unstable(const Measured& measured, std::vector<Warning>& warnings) {
  const double ratio = slowdown(measured);
  if (ratio > kSlowRunsLimit) {
    warnings.push_back({"unstable", measured.name,
                        "The machine was busy: runs of " + measured.name + " (p50 " + fixed(p50_ms(measured), 3) +
                            " ms) mostly took " + fixed(ratio, 1) +
                            " times as long as the fastest of the same input (limit " + format("%g", kSlowRunsLimit) +
                            "). Stop other work on this machine and measure again."});
  } else if (!measured.warmup_stable) {
    warnings.push_back({"unstable", measured.name,
                        "The time of a run of " + measured.name + " had not settled after " +
                            std::to_string(measured.warmup_runs) +
                            " runs of warm-up: its last two windows differ by more than 2 % (limit). Measure for "
                            "longer, on a machine that does nothing else."});
  }
}

}  // namespace

Snapshot snapshot(const std::string& root) {
  Snapshot found;
  found.time_s = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  found.throttle_counts = throttle_counts(root);
  found.quota_stops = quota_stops(root);
  found.temperatures_c = temperatures_c(root);
  found.trips_c = trips_c(root);
  read_cpu_times(root, found);
  timespec own{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &own);
  found.own_cpu_s = static_cast<double>(own.tv_sec) + static_cast<double>(own.tv_nsec) / 1e9;
  return found;
}

std::vector<Warning> machine_warnings(const Snapshot& before, const Snapshot& after, const std::string& root) {
  std::vector<Warning> warnings;
  add_throttled(before, after, root, warnings);
  add_noisy(before, after, warnings);
  add_not_locked(root, warnings);
  return warnings;
}

std::vector<Warning> model_warnings(const Measured& measured) {
  std::vector<Warning> warnings;
  if (!measured.assumed.empty()) {
    std::string sizes;
    for (const std::string& dim : measured.assumed) sizes += " --size " + dim + "=128";
    warnings.push_back({"size_assumed", measured.name,
                        measured.name + " ran with " + joined(measured.assumed, " and ") +
                            " of length 1. Say how long real inputs are, such as" + sizes + "."});
  }
  const double typical_ms = p50_ms(measured);
  if (measured.first_ms > kFirstRunLimit * typical_ms && measured.first_ms - typical_ms > kFirstRunWorthMs) {
    warnings.push_back({"first_run_slow", measured.name,
                        "The first run of " + measured.name + " took " + fixed(measured.first_ms, 1) + " ms, " +
                            fixed(measured.first_ms / typical_ms, 0) + " times its p50 of " + fixed(typical_ms, 3) +
                            " ms (limit " + format("%g", kFirstRunLimit) +
                            "). Run the model once when the program starts, before anybody waits for it."});
  }
  add_few(measured, warnings);
  add_unstable(measured, warnings);
  const double grown = measured.growth_bytes_per_run * static_cast<double>(measured.samples_ns.size());
  if (grown > kGrowthLimitBytes) {
    warnings.push_back({"memory_grows", measured.name,
                        "The memory of " + measured.name + " grew by " +
                            fixed(measured.growth_bytes_per_run / 1000, 1) + " kB with each of " +
                            std::to_string(measured.samples_ns.size()) + " runs, " + fixed(grown / 1e6, 1) +
                            " MB in all (limit " + fixed(kGrowthLimitBytes / 1e6, 1) +
                            " MB). Look for what the model keeps of each run."});
  }
  return warnings;
}

}  // namespace tlc
