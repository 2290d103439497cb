// Small files of /proc and /sys; what is absent is empty, never an error.
#ifndef TLC_NATIVE_SYSFS_H_
#define TLC_NATIVE_SYSFS_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace tlc {

// Return a file's text without zero bytes and space around it; empty where it cannot be read or holds nothing.
std::optional<std::string> read_text(const std::string& path);

// Return the whole number that a file holds.
std::optional<int64_t> read_integer(const std::string& path);

// Return the `key : value` lines of a file; of a repeated key, as one per core, the first.
std::map<std::string, std::string> colon_table(const std::string& path);

// Return the paths that match a pattern of glob(3), by name, numbers in names in their order.
std::vector<std::string> matching(const std::string& pattern);

// Return the last part of a path.
std::string base_name(const std::string& path);

bool path_exists(const std::string& path);

std::vector<std::string> lines_of(const std::string& text);

std::vector<std::string> words_of(const std::string& text);

}  // namespace tlc

#endif  // TLC_NATIVE_SYSFS_H_
