// What Linux says of clocks, heat, control groups and the kind of machine, as runtime/sysfs.py, runtime/cgroup.py and
// runtime/jetson.py read it. `root` is where proc/ and sys/ lie and ends with a slash; what is absent is empty.
#ifndef TLC_NATIVE_MACHINE_H_
#define TLC_NATIVE_MACHINE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace tlc {

// How some cores' clocks are governed.
struct CpuPolicy {
  std::optional<std::string> governor;
  std::optional<std::string> driver;
  std::optional<int64_t> min_khz;  // the range that the governor may use
  std::optional<int64_t> max_khz;
  std::vector<int64_t> cores;
  std::vector<int64_t> current_khz;  // one for each policy of the kernel
};

std::vector<CpuPolicy> cpu_policies(const std::string& root);

// Return whether CPU and GPU cannot change their frequency.
std::optional<bool> clocks_locked(const std::string& root);

// Return whether cores may exceed their nominal clock.
std::optional<bool> cpu_turbo(const std::string& root);

// Return every thermal zone, and the CPU's own sensors, by name; degrees Celsius.
std::map<std::string, double> temperatures_c(const std::string& root);

// Return by thermal zone the lowest temperature at which the kernel slows something down.
std::map<std::string, double> trips_c(const std::string& root);

// Return how often heat has slowed cores since the start, by counter.
std::map<std::string, int64_t> throttle_counts(const std::string& root);

// Return the tightest quota of the control groups as `cpu.max` of version 2 spells it.
std::optional<std::string> cpu_quota(const std::string& root);

// Return the cores that the control group may run on: "0-3,8".
std::optional<std::string> cpuset(const std::string& root);

// Return the tightest limit on memory.
std::optional<int64_t> memory_limit_bytes(const std::string& root);

// Return in how many periods the control group was stopped because its quota was used up.
std::optional<int64_t> quota_stops(const std::string& root);

// Return the container that this process runs in, such as "docker".
std::optional<std::string> container(const std::string& root);

}  // namespace tlc

#endif  // TLC_NATIVE_MACHINE_H_
