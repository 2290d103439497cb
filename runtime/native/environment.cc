#include "environment.h"

#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <ctime>
#include <set>
#include <sstream>

#include "machine.h"
#include "sha256.h"
#include "sysfs.h"

namespace tlc {

namespace {

// Those that decide which kernels run (x86, then ARM), and `hypervisor`: a virtual machine has neighbours.
const char* const kFlags[] = {"amx_bf16",   "amx_int8", "amx_tile",    "asimd",         "asimddp",     "asimdhp",
                              "avx",        "avx2",     "avx512_bf16", "avx512_fp16",   "avx512_vnni", "avx512bw",
                              "avx512f",    "avx512vl", "avx_vnni",    "avx_vnni_int8", "bf16",        "fma",
                              "hypervisor", "i8mm",     "sse4_1",      "sve",           "sve2"};
// Facts that are compared as they are.
const char* const kSame[] = {"machine_id",    "machine",      "os",        "cpu_model",  "cpu_flags", "board",
                             "logical_cores", "usable_cores", "cpu_quota", "cpuset",     "cpu_turbo", "cpu_smt",
                             "clocks_locked", "power_mode",   "gpus",      "gpu_driver", "container"};
// The application's part of machine_id, as in runtime/environment.py.
constexpr unsigned char kApplication[16] = {0xeb, 0x5d, 0x16, 0x05, 0x61, 0xb2, 0x47, 0xad,
                                            0xb6, 0x18, 0x9d, 0x05, 0xdc, 0xc8, 0x39, 0x5d};

using Facts = std::map<std::string, std::string>;

std::optional<std::string> value_of(const Facts& facts, const std::string& key) {
  const auto found = facts.find(key);
  return found == facts.end() || found->second.empty() ? std::nullopt : std::optional<std::string>(found->second);
}

std::string from_hex(const std::string& text) {
  std::string bytes;
  for (size_t i = 0; i + 1 < text.size(); i += 2) {
    bytes += static_cast<char>(std::strtol(text.substr(i, 2).c_str(), nullptr, 16));
  }
  return bytes;
}

// HMAC-SHA256, RFC 2104, for keys of up to 64 bytes.
std::string hmac_hex(std::string key, const std::string& message) {
  key.resize(64, '\0');
  std::string inner, outer;
  for (const char byte : key) {
    inner += static_cast<char>(byte ^ 0x36);
    outer += static_cast<char>(byte ^ 0x5c);
  }
  return sha256_hex(outer + from_hex(sha256_hex(inner + message)));
}

// This application's own form of /etc/machine-id, which machine-id(5) asks to hash before it leaves the machine: as
// `systemd-id128 machine-id --app-specific=UUID` prints it.
std::optional<std::string> machine_id(const std::string& root) {
  const std::string id = read_text(root + "etc/machine-id").value_or("");
  if (id.size() != 32 || id.find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) return std::nullopt;
  const std::string application(reinterpret_cast<const char*>(kApplication), sizeof kApplication);
  std::string found = hmac_hex(from_hex(id), application).substr(0, 32);
  const char* digits = "0123456789abcdef";
  found[12] = '4';
  found[16] = digits[(std::strtol(found.substr(16, 1).c_str(), nullptr, 16) & 3) | 8];
  return found;
}

std::optional<int64_t> kib_to_bytes(const Facts& memory, const char* key) {
  const auto text = value_of(memory, key);
  return text ? std::optional<int64_t>(std::atoll(text->c_str()) * 1024) : std::nullopt;
}

std::optional<int> usable_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return std::nullopt;
  return CPU_COUNT(&set);
}

std::optional<std::vector<double>> load_average() {
  double values[3];
  if (getloadavg(values, 3) != 3) return std::nullopt;
  std::vector<double> rounded;
  for (const double value : values) rounded.push_back(std::round(value * 100) / 100);
  return rounded;
}

std::optional<std::vector<std::string>> nvidia_gpus(const std::string& root) {
  if (!path_exists(root + "proc/driver/nvidia")) return std::nullopt;
  std::multiset<std::string> models;
  for (const std::string& card : matching(root + "proc/driver/nvidia/gpus/*/information")) {
    models.insert(value_of(colon_table(card), "Model").value_or("unknown"));
  }
  return std::vector<std::string>(models.begin(), models.end());
}

// The first number with a dot behind "Kernel Module".
std::optional<std::string> nvidia_driver(const std::string& root) {
  const std::string text = read_text(root + "proc/driver/nvidia/version").value_or("");
  const size_t start = text.find("Kernel Module");
  if (start == std::string::npos) return std::nullopt;
  for (const std::string& word : words_of(text.substr(start))) {
    const bool number =
        word.find('.') != std::string::npos && word.find_first_not_of("0123456789.") == std::string::npos;
    if (number) return word;
  }
  return std::nullopt;
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S+00:00", &parts);
  return text;
}

std::vector<JsonObject> policies_json(const std::vector<CpuPolicy>& policies) {
  std::vector<JsonObject> list;
  for (const CpuPolicy& policy : policies) {
    JsonObject entry;
    entry.add("governor", policy.governor)
        .add("driver", policy.driver)
        .add("min_khz", policy.min_khz)
        .add("max_khz", policy.max_khz)
        .add("cores", policy.cores)
        .add("current_khz", policy.current_khz);
    list.push_back(entry);
  }
  return list;
}

template <typename T>
std::optional<T> unless_empty(const T& values) {
  return values.empty() ? std::nullopt : std::optional<T>(values);
}

}  // namespace

JsonObject environment(const std::map<std::string, std::string>& versions, const std::string& root) {
  const Facts cpu = colon_table(root + "proc/cpuinfo"), memory = colon_table(root + "proc/meminfo");
  const std::string cpus = root + "sys/devices/system/cpu/";
  const std::string listed_flags = value_of(cpu, "flags").value_or(value_of(cpu, "Features").value_or(""));
  std::set<std::string> flags;
  for (const std::string& flag : words_of(listed_flags)) flags.insert(flag);
  std::vector<std::string> known;
  for (const char* flag : kFlags) {
    if (flags.count(flag) != 0) known.push_back(flag);
  }
  const auto board = read_text(root + "proc/device-tree/model");
  const bool is_virtual = flags.count("hypervisor") != 0 || path_exists(root + "proc/device-tree/hypervisor");
  const bool is_known = is_virtual || flags.count("fpu") != 0 || path_exists(root + "proc/device-tree");
  const auto power_mode = read_text(root + "var/lib/nvpmodel/status");
  const auto model = value_of(cpu, "model name");
  const auto smt = read_integer(cpus + "smt/active");
  utsname system{};
  const bool named = uname(&system) == 0;
  const auto field = [&](const char* text) { return named ? std::optional<std::string>(text) : std::nullopt; };

  JsonObject found;
  found.add("cpu_model", model ? model : board)
      .add("cpu_flags", unless_empty(known))
      .add("board", board)
      .add("logical_cores", static_cast<int64_t>(sysconf(_SC_NPROCESSORS_ONLN)))
      .add("usable_cores", usable_cores())
      .add("cpu_quota", cpu_quota(root))
      .add("cpuset", cpuset(root))
      .add("cpu_governor", read_text(cpus + "cpu0/cpufreq/scaling_governor"))
      .add("cpu_max_khz", read_integer(cpus + "cpu0/cpufreq/cpuinfo_max_freq"))
      .add("cpu_policies", unless_empty(policies_json(cpu_policies(root))))
      .add("cpu_turbo", cpu_turbo(root))
      .add("cpu_smt", smt ? std::optional<bool>(*smt == 1) : std::nullopt)
      .add("clocks_locked", clocks_locked(root))
      .add("power_mode", power_mode ? power_mode : read_text(root + "sys/firmware/acpi/platform_profile"))
      .add("temperatures_c", unless_empty(temperatures_c(root)))
      .add("load_average", load_average())
      .add("memory_total_bytes", kib_to_bytes(memory, "MemTotal"))
      .add("memory_available_bytes", kib_to_bytes(memory, "MemAvailable"))
      .add("memory_limit_bytes", memory_limit_bytes(root))
      .add("gpus", nvidia_gpus(root))
      .add("gpu_driver", nvidia_driver(root))
      .add("container", container(root))
      .add("virtual_machine", is_known ? std::optional<bool>(is_virtual) : std::nullopt)
      .add("os", field(system.sysname))
      .add("os_release", field(system.release))
      .add("machine", field(system.machine))
      .add("python", std::nullopt)
      .add("versions", versions)
      .add("machine_id", machine_id(root))
      .add("time_utc", utc_now());
  return found;
}

JsonObject machine_identity(const JsonObject& environment) {
  const Json facts = Json::parse(environment.text());
  JsonObject found;
  for (const char* name : kSame) found.add_json(name, environment.value(name));

  std::set<std::string> governors;
  if (const Json* policies = facts.find("cpu_policies")) {
    for (const Json& policy : policies->array()) {
      if (const Json* governor = policy.find("governor")) governors.insert(governor->string());
    }
  }
  const Json* total = facts.find("memory_total_bytes");
  const Json* limit = facts.find("memory_limit_bytes");
  const bool limited = limit != nullptr && (total == nullptr || limit->integer() < total->integer());
  std::optional<int64_t> total_gib;
  if (total != nullptr) total_gib = std::llround(total->number() / (int64_t{1} << 30));
  std::optional<std::string> kernel;
  if (const Json* release = facts.find("os_release")) {
    const std::string& text = release->string();
    const size_t first = text.find('.');
    if (first != std::string::npos) kernel = text.substr(0, text.find('.', first + 1));
  }
  std::map<std::string, std::string> versions;
  for (const auto& version : facts.at("versions").object()) {
    if (version.first != "tlc") versions[version.first] = version.second.string();
  }
  found.add("cpu_governors", unless_empty(std::vector<std::string>(governors.begin(), governors.end())))
      .add("memory_total_gib", total_gib)
      .add("memory_limit_bytes", limited ? std::optional<int64_t>(limit->integer()) : std::nullopt)
      .add("kernel", kernel)
      .add("versions", versions);
  return found;
}

}  // namespace tlc
