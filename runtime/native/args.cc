#include "args.h"

#include <cstdlib>
#include <functional>
#include <limits>

#include "error.h"

namespace tlc {

const char kHelp[] = R"(Usage: tlc-run bench MODEL.onnx [OPTIONS]

Measure the latency of an ONNX file with ONNX Runtime on the CPU of this machine. The input is pseudo-random, because
latency does not depend on the values; dynamic batch dimensions become 1.

Options:
  --json            print one JSON object: every sample in order, percentiles, size, memory
  --threads N       threads inside one operator (default 1)
  --runs N          measured runs (default 200)
  --warmup N        at least N runs and 200 ms before measuring; 0: none (default 20)
  --seed N          seed of the input (default 0)
  --shape NAME:DIMS shape of an input with dynamic dimensions, as x:1x3x224x224; may be repeated
  --ort-lib PATH    libonnxruntime to load (default: TLC_ORT_LIB, then the system's library path)
  --version         print the version
  --help            print this text

Percentiles are nearest-rank: p90_ms is the smallest sample with at least 90 % of all samples at or below it.
Exit status: 0 done, 1 failed, 2 wrong usage.

Example:
  tlc-run bench model.onnx --threads 2 --json > bench.json
)";

namespace {

uint64_t parse_number(const std::string& option, const std::string& text, uint64_t low, uint64_t high) {
  const bool digits = !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
  // 19 digits fit into 64 bits; more are above every limit.
  const uint64_t value = digits && text.size() <= 19 ? std::strtoull(text.c_str(), nullptr, 10) : high + 1;
  if (!digits || value < low || value > high) {
    throw UsageError(option + " must be a whole number from " + std::to_string(low) + " to " + std::to_string(high) +
                         ", got '" + text + "'",
                     "Run tlc-run --help for the meaning of " + option + ".");
  }
  return value;
}

int parse_int(const std::string& option, const std::string& text, int low, int high) {
  return static_cast<int>(parse_number(option, text, static_cast<uint64_t>(low), static_cast<uint64_t>(high)));
}

void add_shape(Args& args, const std::string& text) {
  const size_t colon = text.rfind(':');  // names may hold colons, shapes cannot
  if (colon == std::string::npos || colon == 0) {
    throw UsageError("--shape must be NAME:DIMS, got '" + text + "'", "Write it as --shape input:1x3x224x224.");
  }
  args.shapes[text.substr(0, colon)] = parse_shape(text.substr(colon + 1));
}

using Setter = std::function<void(Args&, const std::string&)>;

const std::map<std::string, Setter>& options() {
  static const std::map<std::string, Setter> table = {
      {"--threads", [](Args& a, const std::string& v) { a.threads = parse_int("--threads", v, 1, 1024); }},
      {"--runs", [](Args& a, const std::string& v) { a.runs = parse_int("--runs", v, 1, 10000000); }},
      {"--warmup", [](Args& a, const std::string& v) { a.warmup_runs = parse_int("--warmup", v, 0, 10000000); }},
      {"--seed", [](Args& a, const std::string& v) { a.seed = parse_number("--seed", v, 0, INT64_MAX); }},
      {"--ort-lib", [](Args& a, const std::string& v) { a.ort_lib = v; }},
      {"--shape", add_shape},
  };
  return table;
}

Args parse_bench(const std::vector<std::string>& words) {
  Args args;
  args.command = Args::Command::kBench;
  for (size_t i = 1; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word == "--json") {
      args.json = true;
      continue;
    }
    if (word.rfind("--", 0) != 0) {
      if (!args.model.empty()) {
        throw UsageError("more than one model: '" + args.model + "' and '" + word + "'", "Bench one file at a time.");
      }
      args.model = word;
      continue;
    }
    const size_t equals = word.find('=');
    const std::string name = word.substr(0, equals);
    const auto option = options().find(name);
    if (option == options().end()) {
      throw UsageError("unknown option '" + name + "'", "Run tlc-run --help for the options.");
    }
    if (equals == std::string::npos && i + 1 == words.size()) {
      throw UsageError(name + " needs a value", "Run tlc-run --help for the options.");
    }
    option->second(args, equals == std::string::npos ? words[++i] : word.substr(equals + 1));
  }
  if (args.model.empty()) throw UsageError("no model given", "Write it as tlc-run bench model.onnx.");
  return args;
}

}  // namespace

Shape parse_shape(const std::string& text) {
  Shape shape;
  size_t start = 0;
  while (true) {
    const size_t end = text.find('x', start);
    const std::string dim = text.substr(start, end == std::string::npos ? end : end - start);
    shape.push_back(parse_int("each dimension of --shape", dim, 1, std::numeric_limits<int>::max()));
    if (end == std::string::npos) return shape;
    start = end + 1;
  }
}

Args parse_args(const std::vector<std::string>& words) {
  Args args;
  for (const std::string& word : words) {
    if (word == "--help" || word == "-h") return args;
  }
  if (words.empty()) throw UsageError("no command given", "Write it as tlc-run bench model.onnx.");
  if (words[0] == "--version") {
    args.command = Args::Command::kVersion;
    return args;
  }
  if (words[0] != "bench") throw UsageError("unknown command '" + words[0] + "'", "The one command is bench.");
  return parse_bench(words);
}

}  // namespace tlc
