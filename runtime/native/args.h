// The command line of tlc-run.
#ifndef TLC_NATIVE_ARGS_H_
#define TLC_NATIVE_ARGS_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "tensor.h"

namespace tlc {

// What the command line says; a value that was not given is empty or its default.
struct Args {
  std::string command;  // "help", "version", or one of those in commands.h
  std::string topic;    // of "help": the command that is explained; empty: all
  std::string model;    // bundle, ONNX file or engine
  std::string input;    // serve-once: picture, or .npz of one prepared sample

  // Of every command that runs a model.
  std::optional<int> threads;  // else the target's, or 1
  std::string backend;         // "onnxruntime", "openvino" or "tensorrt"; empty: the target's
  std::string ort_lib;         // path of libonnxruntime; empty: search
  std::string openvino_lib;    // path of libopenvino_c; empty: search
  std::string plan;            // engine of a TensorRT bundle; empty: NAME.plan beside it
  bool json = false;

  // bench
  double duration_s = 3;
  std::optional<int> rounds;  // instead of duration_s
  int batch = 1;
  int streams = 1;
  uint64_t seed = 0;
  std::map<std::string, Shape> shapes;   // by input
  std::map<std::string, int64_t> sizes;  // by open dimension
  std::string inputs;                    // .npz
  bool energy = true;
  bool profile = false;

  // build
  std::string out;                         // folder; empty: beside the bundle
  std::optional<int64_t> workspace_bytes;  // else from what is free

  // eval
  std::string data;              // folder with a folder per class, or .npz
  std::optional<int64_t> limit;  // samples at most
  std::string predictions;       // file to write

  // serve-once
  int top = 5;
};

// Parse the arguments after the program's name; throws UsageError.
Args parse_args(const std::vector<std::string>& words);

// Parse "1x3x224x224"; throws UsageError unless every dimension is in [1, 2^31).
Shape parse_shape(const std::string& text);

// Return what --help prints: all commands, or the options of one.
std::string help_text(const std::string& command);

}  // namespace tlc

#endif  // TLC_NATIVE_ARGS_H_
