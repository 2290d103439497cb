#include "report.h"

#include <cstdio>

#include "json.h"

namespace tlc {

namespace {

constexpr double kNsPerMs = 1e6;
constexpr double kBytesPerMib = 1024.0 * 1024.0;

// Return `separator`-joined values in brackets.
template <typename Values, typename Format>
std::string list(const Values& values, Format format) {
  std::string out;
  for (const auto& value : values) out += (out.empty() ? "" : ", ") + format(value);
  return "[" + out + "]";
}

std::string shape_text(const Shape& shape) {
  return list(shape, [](int64_t dim) { return std::to_string(dim); });
}

std::string input_json(const BenchInput& input) {
  return "{\"name\": " + json_string(input.name) + ", \"dtype\": " + json_string(input.dtype) +
         ", \"shape\": " + shape_text(input.shape) + "}";
}

std::string latency_json(const SamplesNs& samples) {
  const Summary summary = summarise(samples);
  const auto ms = [](int64_t ns) { return json_number(static_cast<double>(ns) / kNsPerMs); };
  return "{\"p50_ms\": " + json_number(summary.p50_ms) + ", \"p90_ms\": " + json_number(summary.p90_ms) +
         ", \"p99_ms\": " + json_number(summary.p99_ms) + ", \"mean_ms\": " + json_number(summary.mean_ms) +
         ", \"min_ms\": " + json_number(summary.min_ms) +
         ", \"throughput_per_s\": " + json_number(summary.throughput_per_s) + ", \"samples_ms\": " + list(samples, ms) +
         "}";
}

std::string fixed(double value, int digits) {
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, "%.*f", digits, value);
  return buffer;
}

std::string mib(int64_t bytes) { return fixed(static_cast<double>(bytes) / kBytesPerMib, 2) + " MiB"; }

}  // namespace

std::string json_report(const BenchResult& result) {
  const auto peak = result.peak_memory_bytes ? std::to_string(*result.peak_memory_bytes) : "null";
  return "{\n  \"schema_version\": 1,\n  \"tool\": " + json_string("tlc-run " TLC_VERSION) +
         ",\n  \"model\": " + json_string(result.model) + ",\n  \"size_bytes\": " + std::to_string(result.size_bytes) +
         ",\n  \"runtime\": \"onnxruntime\",\n  \"runtime_version\": " + json_string(result.runtime_version) +
         ",\n  \"threads\": " + std::to_string(result.threads) +
         ",\n  \"input\": \"random\",\n  \"seed\": " + std::to_string(result.seed) +
         ",\n  \"inputs\": " + list(result.inputs, input_json) +
         ",\n  \"warmup_runs\": " + std::to_string(result.warmup_runs) +
         ",\n  \"runs\": " + std::to_string(result.samples_ns.size()) + ",\n  \"peak_memory_bytes\": " + peak +
         ",\n  \"latency\": " + latency_json(result.samples_ns) + "\n}\n";
}

std::string text_report(const BenchResult& result) {
  const Summary summary = summarise(result.samples_ns);
  std::string inputs;
  for (const BenchInput& input : result.inputs) {
    inputs += (inputs.empty() ? "" : ", ") + input.name + " " + input.dtype + " " + shape_text(input.shape);
  }
  return "model       " + result.model + " (" + mib(result.size_bytes) + ")\nruntime     ONNX Runtime " +
         result.runtime_version + ", CPU, threads: " + std::to_string(result.threads) + "\ninput       " + inputs +
         ", random (seed " + std::to_string(result.seed) + ")\nruns        " +
         std::to_string(result.samples_ns.size()) + " after " + std::to_string(result.warmup_runs) +
         " to warm up\n\nlatency     p50 " + fixed(summary.p50_ms, 3) + " ms   p90 " + fixed(summary.p90_ms, 3) +
         " ms   p99 " + fixed(summary.p99_ms, 3) + " ms   min " + fixed(summary.min_ms, 3) + " ms   mean " +
         fixed(summary.mean_ms, 3) + " ms\nthroughput  " + fixed(summary.throughput_per_s, 1) +
         " inferences a second\npeak memory " +
         (result.peak_memory_bytes ? mib(*result.peak_memory_bytes) : "not known on this system") + "\n";
}

}  // namespace tlc
