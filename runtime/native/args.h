// The command line of tlc-run.
#ifndef TLC_NATIVE_ARGS_H_
#define TLC_NATIVE_ARGS_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace tlc {

using Shape = std::vector<int64_t>;

struct Args {
  enum class Command { kBench, kHelp, kVersion };

  Command command = Command::kHelp;
  std::string model;    // path of the .onnx file
  std::string ort_lib;  // path of libonnxruntime; empty: search
  int threads = 1;
  int runs = 200;
  int warmup_runs = 20;
  uint64_t seed = 0;
  bool json = false;
  std::map<std::string, Shape> shapes;  // by input name
};

extern const char kHelp[];

// Parse the arguments after the program's name; throws UsageError.
Args parse_args(const std::vector<std::string>& words);

// Parse "1x3x224x224"; throws UsageError unless every dimension is in [1, 2^31).
Shape parse_shape(const std::string& text);

}  // namespace tlc

#endif  // TLC_NATIVE_ARGS_H_
