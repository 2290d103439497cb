// Whether a measurement can be trusted: what the machine did meanwhile, and what the samples themselves say. The rules
// and limits of runtime/health.py.
#ifndef TLC_NATIVE_HEALTH_H_
#define TLC_NATIVE_HEALTH_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "stats.h"

namespace tlc {

struct Warning {
  std::string code;   // WarningCode of runtime/bench_report.py
  std::string model;  // empty: the whole machine
  std::string message;
};

// The machine at one moment. Counters only grow; what a system does not tell is empty.
struct Snapshot {
  double time_s = 0;                               // monotonic
  std::map<std::string, int64_t> throttle_counts;  // by counter
  std::optional<int64_t> quota_stops;              // periods in which the container's CPU quota stopped it
  std::map<std::string, double> temperatures_c;
  std::map<std::string, double> trips_c;  // where the kernel begins to slow things down
  std::optional<double> busy_s;           // that the usable cores worked for this system, all added up
  std::optional<double> steal_s;          // that they wanted, and the host gave to others
  std::optional<double> total_s;          // that passed on them, idle or not
  double own_cpu_s = 0;                   // of this process
};

// Return the machine as it is now; proc/ and sys/ lie in `root`, which ends with a slash.
Snapshot snapshot(const std::string& root = "/");

// Return what disturbed a measurement between two snapshots: "throttled", "noisy_neighbour", "clocks_not_locked".
std::vector<Warning> machine_warnings(const Snapshot& before, const Snapshot& after, const std::string& root = "/");

// What the samples of one model are judged by.
struct Measured {
  std::string name;
  SamplesNs samples_ns;
  int block;  // samples per round
  double first_ms;
  bool warmup_stable;
  int warmup_runs;
  double growth_bytes_per_run;
  std::vector<std::string> assumed;
};

// Return what makes a model's numbers worth less: "size_assumed", "first_run_slow", "too_few_samples", "unstable",
// "memory_grows".
std::vector<Warning> model_warnings(const Measured& measured);

}  // namespace tlc

#endif  // TLC_NATIVE_HEALTH_H_
