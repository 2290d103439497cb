#include "sysfs.h"

#include <glob.h>
#include <sys/stat.h>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <sstream>

namespace tlc {

namespace {

// Compare so that policy10 comes after policy9.
bool natural_less(const std::string& a, const std::string& b) {
  size_t i = 0, j = 0;
  while (i < a.size() && j < b.size()) {
    if (std::isdigit(static_cast<unsigned char>(a[i])) && std::isdigit(static_cast<unsigned char>(b[j]))) {
      const size_t end_a = std::min(a.find_first_not_of("0123456789", i), a.size());
      const size_t end_b = std::min(b.find_first_not_of("0123456789", j), b.size());
      if (end_a - i != end_b - j) return end_a - i < end_b - j;
      const int order = a.compare(i, end_a - i, b, j, end_b - j);
      if (order != 0) return order < 0;
      i = end_a;
      j = end_b;
    } else if (a[i] != b[j]) {
      return a[i] < b[j];
    } else {
      ++i;
      ++j;
    }
  }
  return a.size() - i < b.size() - j;
}

std::string stripped(const std::string& text) {
  const std::string blank("\0 \t\r\n", 5);
  const size_t first = text.find_first_not_of(blank);
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(blank) - first + 1);
}

}  // namespace

std::optional<std::string> read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  if (!file || !(content << file.rdbuf())) return std::nullopt;
  const std::string text = stripped(content.str());
  return text.empty() ? std::nullopt : std::optional<std::string>(text);
}

std::optional<int64_t> read_integer(const std::string& path) {
  const auto text = read_text(path);
  if (!text) return std::nullopt;
  const size_t sign = (*text)[0] == '-' ? 1 : 0;
  const bool digits = text->size() > sign && text->find_first_not_of("0123456789", sign) == std::string::npos;
  if (!digits || text->size() > 18) return std::nullopt;
  return std::stoll(*text);
}

std::map<std::string, std::string> colon_table(const std::string& path) {
  std::map<std::string, std::string> table;
  for (const std::string& line : lines_of(read_text(path).value_or(""))) {
    const size_t colon = line.find(':');
    if (colon != std::string::npos) table.emplace(stripped(line.substr(0, colon)), stripped(line.substr(colon + 1)));
  }
  return table;
}

std::vector<std::string> matching(const std::string& pattern) {
  glob_t found{};
  std::vector<std::string> paths;
  if (glob(pattern.c_str(), GLOB_NOSORT, nullptr, &found) == 0) {
    paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  }
  globfree(&found);
  std::sort(paths.begin(), paths.end(), natural_less);
  return paths;
}

std::string base_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

bool path_exists(const std::string& path) {
  struct stat status{};
  return stat(path.c_str(), &status) == 0;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> words;
  std::istringstream stream(text);
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

}  // namespace tlc
