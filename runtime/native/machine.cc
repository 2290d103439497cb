#include "machine.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <limits>

#include "sysfs.h"

namespace tlc {

namespace {

constexpr int64_t kCoolestTripC = 40;                  // below it, a trip point is a placeholder of the firmware
constexpr int64_t kUnlimitedBytes = int64_t{1} << 62;  // version 1 writes no limit as 2^63 less a page
constexpr char kCpu[] = "sys/devices/system/cpu/";

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.rfind(from);
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

// Zones of one type are told apart by their number.
std::string zone_name(const std::string& zone) {
  const std::string number = base_name(zone).substr(std::string("thermal_zone").size());
  return read_text(zone + "/type").value_or("zone") + " " + number;
}

// Return the folders of this process's group and those above it, from the inside out, each with a slash at its end.
// Inside a container the path of the group may be the host's, of which only the top is there.
std::vector<std::string> group_folders(const std::string& root, const std::string& controller) {
  const std::string base = root + "sys/fs/cgroup/";
  const bool first_version = path_exists(base + controller);
  const std::string mount = first_version ? base + controller + "/" : base;
  const std::string key = first_version ? controller : "";
  std::string group = "/";
  for (const std::string& line : lines_of(read_text(root + "proc/self/cgroup").value_or(""))) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    if (controllers.find("," + key + ",") != std::string::npos) group = line.substr(second + 1);
  }
  if ((group + "/").find("/../") != std::string::npos) group = "/";  // outside of what this namespace shows
  std::vector<std::string> folders;
  std::string inside = group == "/" ? "" : group.substr(1) + "/";
  while (true) {
    if (path_exists(mount + inside)) folders.push_back(mount + inside);
    if (inside.empty()) return folders;
    const size_t slash = inside.rfind('/', inside.size() - 2);
    inside = slash == std::string::npos ? "" : inside.substr(0, slash + 1);
  }
}

double quota_cores(const std::string& quota) {
  const std::vector<std::string> words = words_of(quota);
  if (words.size() != 2 || words[0] == "max") return std::numeric_limits<double>::infinity();
  return std::atof(words[0].c_str()) / std::atof(words[1].c_str());
}

}  // namespace

std::vector<CpuPolicy> cpu_policies(const std::string& root) {
  std::vector<CpuPolicy> ways;
  for (const std::string& folder : matching(root + kCpu + "cpufreq/policy[0-9]*")) {
    CpuPolicy policy{read_text(folder + "/scaling_governor"),
                     read_text(folder + "/scaling_driver"),
                     read_integer(folder + "/scaling_min_freq"),
                     read_integer(folder + "/scaling_max_freq"),
                     {},
                     {}};
    auto way = std::find_if(ways.begin(), ways.end(), [&](const CpuPolicy& each) {
      return each.governor == policy.governor && each.driver == policy.driver && each.min_khz == policy.min_khz &&
             each.max_khz == policy.max_khz;
    });
    if (way == ways.end()) way = ways.insert(ways.end(), policy);
    for (const std::string& core : words_of(read_text(folder + "/affected_cpus").value_or(""))) {
      way->cores.push_back(std::atoll(core.c_str()));
    }
    if (const auto current = read_integer(folder + "/scaling_cur_freq")) way->current_khz.push_back(*current);
  }
  return ways;
}

std::optional<bool> clocks_locked(const std::string& root) {
  std::vector<std::pair<std::string, std::string>> ranges;
  for (const std::string& folder : matching(root + "sys/class/devfreq/*")) {
    for (const char* gpu : {"gpu", "gp10b", "gv11b", "ga10b"}) {
      if (base_name(folder).find(gpu) == std::string::npos) continue;
      ranges.emplace_back(folder + "/min_freq", folder + "/max_freq");
      break;
    }
  }
  for (const std::string& folder : matching(root + kCpu + "cpu[0-9]*/cpufreq")) {
    ranges.emplace_back(folder + "/scaling_min_freq", folder + "/scaling_max_freq");
  }
  std::optional<bool> locked;
  for (const auto& range : ranges) {
    const auto low = read_text(range.first), high = read_text(range.second);
    if (low && high) locked = locked.value_or(true) && *low == *high;
  }
  return locked;
}

std::optional<bool> cpu_turbo(const std::string& root) {
  if (const auto off = read_integer(root + kCpu + "intel_pstate/no_turbo")) return *off == 0;
  if (const auto boost = read_integer(root + kCpu + "cpufreq/boost")) return *boost == 1;
  return std::nullopt;
}

std::map<std::string, double> temperatures_c(const std::string& root) {
  std::map<std::string, double> found;
  const auto add = [&](const std::string& name, const std::string& file) {
    if (const auto milli = read_integer(file)) found[name] = static_cast<double>(*milli) / 1000;
  };
  for (const std::string& zone : matching(root + "sys/class/thermal/thermal_zone[0-9]*")) {
    add(zone_name(zone), zone + "/temp");
  }
  for (const std::string& chip : matching(root + "sys/class/hwmon/hwmon[0-9]*")) {
    const std::string name = read_text(chip + "/name").value_or("");
    if (name != "coretemp" && name != "k10temp" && name != "zenpower" && name != "cpu_thermal") continue;
    for (const std::string& sensor : matching(chip + "/temp[0-9]*_input")) {
      const auto label = read_text(replaced(sensor, "_input", "_label"));
      add(name + " " + label.value_or(replaced(base_name(sensor), "_input", "")), sensor);
    }
  }
  return found;
}

std::map<std::string, double> trips_c(const std::string& root) {
  std::map<std::string, double> found;
  for (const std::string& zone : matching(root + "sys/class/thermal/thermal_zone[0-9]*")) {
    for (const std::string& kind : matching(zone + "/trip_point_*_type")) {
      if (read_text(kind).value_or("") != "passive") continue;
      const auto milli = read_integer(replaced(kind, "_type", "_temp"));
      if (!milli || *milli < kCoolestTripC * 1000) continue;
      const double trip = static_cast<double>(*milli) / 1000;
      const auto entry = found.emplace(zone_name(zone), trip);
      entry.first->second = std::min(entry.first->second, trip);
    }
  }
  return found;
}

std::map<std::string, int64_t> throttle_counts(const std::string& root) {
  std::map<std::string, int64_t> found;
  for (const std::string& core : matching(root + kCpu + "cpu[0-9]*")) {
    const auto own = read_integer(core + "/thermal_throttle/core_throttle_count");
    if (own) found[base_name(core)] = *own;
    // Every core of a package shows the package's count.
    const auto shared = read_integer(core + "/thermal_throttle/package_throttle_count");
    const auto package = read_integer(core + "/topology/physical_package_id").value_or(0);
    if (shared) found["package " + std::to_string(package)] = *shared;
  }
  return found;
}

std::optional<std::string> cpu_quota(const std::string& root) {
  std::optional<std::string> tightest;
  for (const std::string& folder : group_folders(root, "cpu")) {
    auto quota = read_text(folder + "cpu.max");
    if (!quota) {
      const auto limit = read_integer(folder + "cpu.cfs_quota_us"), period = read_integer(folder + "cpu.cfs_period_us");
      if (limit && period) quota = (*limit < 0 ? "max" : std::to_string(*limit)) + " " + std::to_string(*period);
    }
    if (quota && (!tightest || quota_cores(*quota) < quota_cores(*tightest))) tightest = quota;
  }
  return tightest;
}

std::optional<std::string> cpuset(const std::string& root) {
  for (const std::string& folder : group_folders(root, "cpuset")) {
    for (const char* name : {"cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"}) {
      if (auto found = read_text(folder + name)) return found;
    }
  }
  return std::nullopt;
}

std::optional<int64_t> memory_limit_bytes(const std::string& root) {
  std::optional<int64_t> tightest;
  for (const std::string& folder : group_folders(root, "memory")) {
    for (const char* name : {"memory.max", "memory.limit_in_bytes"}) {
      const auto limit = read_integer(folder + name);
      if (limit && *limit < kUnlimitedBytes) tightest = std::min(*limit, tightest.value_or(*limit));
    }
  }
  return tightest;
}

std::optional<int64_t> quota_stops(const std::string& root) {
  std::optional<int64_t> stops;
  for (const std::string& folder : group_folders(root, "cpu")) {
    for (const std::string& line : lines_of(read_text(folder + "cpu.stat").value_or(""))) {
      const std::vector<std::string> words = words_of(line);
      if (words.size() == 2 && words[0] == "nr_throttled") stops = stops.value_or(0) + std::atoll(words[1].c_str());
    }
  }
  return stops;
}

std::optional<std::string> container(const std::string& root) {
  if (auto named = read_text(root + "run/systemd/container")) return named;
  if (path_exists(root + ".dockerenv")) return "docker";
  if (path_exists(root + "run/.containerenv")) return "podman";
  const std::string groups = read_text(root + "proc/self/cgroup").value_or("");
  std::optional<std::string> found;
  size_t first = std::string::npos;
  for (const char* name : {"docker", "kubepods", "libpod", "containerd", "crio", "podman", "garden", "lxc"}) {
    const size_t at = groups.find(name);
    if (at < first) {
      first = at;
      found = name;
    }
  }
  return found;
}

}  // namespace tlc
