// Runs a fuzz target without libFuzzer, with any compiler: FUZZ_TARGET FOLDER SECONDS [SEED]. First every file of
// FOLDER, then changed ones for SECONDS. Where the target crashes, what it was given is written to ./crash-input.

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size_bytes);

namespace {

constexpr size_t kMaxBytes = 1 << 16;

std::string input;  // what the target works on

extern "C" void keep_input(int number) {
  const int file = open("crash-input", O_WRONLY | O_CREAT | O_TRUNC, 0644);
  const bool kept = file >= 0 && write(file, input.data(), input.size()) == static_cast<ssize_t>(input.size());
  static const char kKept[] = "crashed; the input is in ./crash-input\n";
  static const char kLost[] = "crashed; the input could not be written to ./crash-input\n";
  const ssize_t said = kept ? write(2, kKept, sizeof kKept - 1) : write(2, kLost, sizeof kLost - 1);
  static_cast<void>(said);
  signal(number, SIG_DFL);
  raise(number);
}

std::vector<std::string> files_in(const std::string& folder) {
  std::vector<std::string> paths, files;
  if (DIR* const listing = opendir(folder.c_str())) {
    while (const dirent* const entry = readdir(listing)) {
      if (entry->d_name[0] != '.') paths.push_back(folder + "/" + entry->d_name);
    }
    closedir(listing);
  }
  std::sort(paths.begin(), paths.end());
  for (const std::string& path : paths) {
    std::ifstream file(path, std::ios::binary);
    files.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return files;
}

void run(std::string bytes) {
  input = std::move(bytes);
  // A copy of the exact size, so that a sanitizer sees reading beyond its end.
  const std::vector<uint8_t> exact(input.begin(), input.end());
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

class Mutator {
 public:
  Mutator(const std::vector<std::string>& files, uint64_t seed) : files_(files), bits_(seed) {}

  std::string changed() {
    std::string bytes = files_[below(files_.size())];
    for (size_t changes = 1 + below(5); changes > 0; --changes) change(bytes);
    if (bytes.size() > kMaxBytes) bytes.resize(kMaxBytes);
    return bytes;
  }

 private:
  size_t below(size_t limit) { return limit == 0 ? 0 : static_cast<size_t>(bits_() % limit); }

  void change(std::string& bytes) {
    const size_t at = below(bytes.size());
    const size_t length = std::min(bytes.size() - at, below(below(2) == 0 ? 4 : 64));
    switch (below(7)) {
      case 0:
        if (!bytes.empty()) bytes[at] ^= static_cast<char>(1 << below(8));
        break;
      case 1:
        if (!bytes.empty()) bytes[at] = static_cast<char>(below(256));
        break;
      case 2:
        bytes.erase(at, length);
        break;
      case 3:
        bytes.insert(at, bytes.substr(at, length));
        break;
      case 4: {  // a number where sizes and counts may be
        static const uint64_t kNumbers[] = {
            0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, ~uint64_t{0} >> 1, ~uint64_t{0}};
        uint64_t number = kNumbers[below(10)];
        const size_t count = std::min(bytes.size() - at, size_t{1} << below(4));
        const bool big_endian = below(2) == 0;
        for (size_t i = 0; i < count; ++i, number >>= 8) {
          bytes[at + (big_endian ? count - 1 - i : i)] = static_cast<char>(number & 0xFF);
        }
        break;
      }
      case 5: {  // part of another file
        const std::string& other = files_[below(files_.size())];
        const size_t from = below(other.size());
        bytes.insert(at, other.substr(from, below(64)));
        break;
      }
      default:
        bytes.resize(at);
        break;
    }
  }

  const std::vector<std::string>& files_;
  std::mt19937_64 bits_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3 || argc > 4) {
    std::fprintf(stderr, "usage: %s FOLDER SECONDS [SEED]\n", argv[0]);
    return 2;
  }
  for (const int number : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL}) signal(number, keep_input);
  const std::vector<std::string> files = files_in(argv[1]);
  if (files.empty()) {
    std::fprintf(stderr, "error: no files in %s\n", argv[1]);
    return 1;
  }
  for (const std::string& file : files) run(file);
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(std::atof(argv[2]));
  Mutator mutator(files, argc == 4 ? std::strtoull(argv[3], nullptr, 10) : 0);
  uint64_t runs = 0;
  for (; std::chrono::steady_clock::now() < end; ++runs) run(mutator.changed());
  std::printf("%zu files and %llu changed ones: no crash\n", files.size(), static_cast<unsigned long long>(runs));
  return 0;
}
