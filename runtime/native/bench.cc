#include "bench.h"

#include <sys/stat.h>

#include <cerrno>
#include <chrono>
#include <cstring>

#include "error.h"
#include "input.h"
#include "memory.h"
#include "ort.h"

namespace tlc {

namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kMinWarmup = std::chrono::milliseconds(200);

// Not std::filesystem: the compilers of the oldest devices need an extra library for it.
int64_t file_size_bytes(const std::string& path) {
  struct stat status{};
  if (stat(path.c_str(), &status) != 0) {
    throw Error("cannot read " + path + ": " + std::strerror(errno), "Name an ONNX file.");
  }
  if (!S_ISREG(status.st_mode)) throw Error(path + " is not a file", "Name an ONNX file.");
  return status.st_size;
}

// Run at least `runs` times and kMinWarmup long, unless `runs` is 0. Returns how often.
int warm_up(OrtModel& model, int runs) {
  if (runs == 0) return 0;
  const auto start = Clock::now();
  int made = 0;
  while (made < runs || Clock::now() - start < kMinWarmup) {
    model.run();
    ++made;
  }
  return made;
}

SamplesNs measure(OrtModel& model, int runs) {
  SamplesNs samples;
  samples.reserve(static_cast<size_t>(runs));
  for (int i = 0; i < runs; ++i) {
    const auto start = Clock::now();
    model.run();
    samples.push_back(std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count());
  }
  return samples;
}

}  // namespace

BenchResult bench(const Args& args) {
  BenchResult result;
  result.model = args.model;
  result.size_bytes = file_size_bytes(args.model);
  result.threads = args.threads;
  result.seed = args.seed;

  const OrtLibrary library(args.ort_lib);
  result.runtime_version = library.version();
  const auto empty_bytes = peak_resident_bytes();
  OrtModel model(library, args.model, args.threads);

  const std::vector<Shape> shapes = resolve_shapes(model.inputs(), args.shapes);
  std::vector<Buffer> buffers;
  for (size_t i = 0; i < shapes.size(); ++i) {
    const InputSpec& input = model.inputs()[i];
    result.inputs.push_back({input.name, dtype_name(input), shapes[i]});
    buffers.push_back(random_input(input, shapes[i], args.seed + i));
  }
  model.bind(buffers);

  result.warmup_runs = warm_up(model, args.warmup_runs);
  result.samples_ns = measure(model, args.runs);
  const auto peak_bytes = peak_resident_bytes();
  if (empty_bytes && peak_bytes) result.peak_memory_bytes = *peak_bytes - *empty_bytes;
  return result;
}

}  // namespace tlc
