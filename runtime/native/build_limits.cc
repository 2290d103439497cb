#include "build_limits.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>

namespace tlc {

namespace {

constexpr int64_t kMib = 1 << 20;
constexpr int64_t kMinWorkspaceBytes = 64 * kMib;

int64_t whole_mib(int64_t size_bytes) { return size_bytes / kMib * kMib; }

Pools scaled(const Pools& pools, int64_t times, int64_t over) {
  Pools result;
  for (const auto& pool : pools) {
    result.emplace_back(pool.first, std::max(kMinWorkspaceBytes, whole_mib(pool.second * times / over)));
  }
  return result;
}

int64_t workspace_of(const Pools& pools) { return pools.at(0).second; }

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  return text;
}

bool has_any(const std::string& text, const std::vector<std::string>& parts) {
  return std::any_of(parts.begin(), parts.end(),
                     [&](const std::string& part) { return text.find(part) != std::string::npos; });
}

// Return the text with every run of characters other than letters, digits and dots as one dash.
std::string for_file_name(const std::string& text) {
  std::string name;
  for (const char character : text) {
    const bool kept = std::isalnum(static_cast<unsigned char>(character)) != 0 || character == '.';
    if (kept) {
      name += character;
    } else if (name.empty() || name.back() != '-') {
      name += '-';
    }
  }
  return name;
}

}  // namespace

bool is_from(const std::string& version, int major, int minor) {
  int found_major = 0;
  int found_minor = 0;
  std::sscanf(version.c_str(), "%d.%d", &found_major, &found_minor);
  return found_major > major || (found_major == major && found_minor >= minor);
}

Pools pool_limits(int64_t target_workspace_bytes, const CudaDevice& gpu, const std::string& tensorrt,
                  std::optional<int64_t> available_bytes, std::optional<int64_t> workspace_bytes) {
  const std::optional<int64_t> free = gpu.integrated ? available_bytes : std::optional<int64_t>(gpu.free_bytes);
  int64_t workspace = workspace_bytes.value_or(target_workspace_bytes);
  if (!workspace_bytes && free) {
    workspace = std::max(kMinWorkspaceBytes, std::min(workspace, *free / (gpu.integrated ? 4 : 2)));
  }
  Pools pools = {{"WORKSPACE", whole_mib(workspace)}};
  if (gpu.integrated && available_bytes && is_from(tensorrt, 8, 6)) {
    pools.emplace_back("TACTIC_DRAM", whole_mib(std::max(workspace, *available_bytes / 2)));
  }
  return pools;
}

std::optional<Pools> smaller(const Pools& pools) {
  if (workspace_of(pools) <= kMinWorkspaceBytes) return std::nullopt;
  return scaled(pools, 1, 2);
}

std::optional<Pools> larger(const Pools& pools, int64_t free_bytes) {
  if (4 * workspace_of(pools) > free_bytes) return std::nullopt;
  return scaled(pools, 4, 1);
}

std::string limits_text(const Pools& pools, std::optional<int> builder_level) {
  std::string text;
  for (const auto& pool : pools) {
    text += (text.empty() ? "" : ", ") + pool.first + " " + std::to_string(pool.second / kMib) + " MiB";
  }
  return builder_level ? text + ", level " + std::to_string(*builder_level) : text;
}

Cause cause_of(const std::string& words) {
  const std::string text = lower(words);
  if (has_any(text, {"could not find any implementation"})) return Cause::kNoKernel;
  const bool memory = has_any(text, {"out of memory", "outofmemory", "insufficient memory", "tactic device request",
                                     "cudaerrormemoryallocation", "bad_alloc"});
  return memory ? Cause::kMemory : Cause::kOther;
}

std::string timing_cache_path(const std::string& tensorrt, const CudaDevice& gpu, const std::string& power_mode) {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  const bool has_cache = cache != nullptr && *cache != '\0';
  const std::string base = has_cache ? cache : std::string(home == nullptr ? "." : home) + "/.cache";
  std::string name;
  for (const std::string& part : {tensorrt, gpu.name, "sm" + gpu.sm, power_mode}) {
    if (!part.empty()) name += (name.empty() ? "" : "_") + for_file_name(part);
  }
  return base + "/tlc/timing/" + name + ".cache";
}

}  // namespace tlc
