#include "report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

namespace tlc {

namespace {

constexpr double kNsPerMs = 1e6;
constexpr double kBytesPerMb = 1e6;

double ms(int64_t ns) { return static_cast<double>(ns) / kNsPerMs; }

std::optional<double> ms(const std::optional<int64_t>& ns) {
  return ns ? std::optional<double>(ms(*ns)) : std::nullopt;
}

int64_t sum_of(const std::vector<Block>& blocks, int64_t Block::* field) {
  return std::accumulate(blocks.begin(), blocks.end(), int64_t{0},
                         [&](int64_t sum, const Block& block) { return sum + block.*field; });
}

double mean_ns(const SamplesNs& samples) {
  return static_cast<double>(std::accumulate(samples.begin(), samples.end(), int64_t{0})) /
         static_cast<double>(samples.size());
}

double throughput_per_s(const BenchResult& result, size_t samples) {
  return result.batch() * static_cast<double>(samples) * 1e9 /
         static_cast<double>(sum_of(result.blocks, &Block::wall_ns));
}

JsonObject setting_json(const BenchResult& result) {
  JsonObject shapes;
  for (const auto& shape : result.opened.shapes) shapes.add(shape.first, shape.second);
  JsonObject setting;
  setting.add("batch", result.batch())
      .add("threads", result.threads)
      .add("streams", result.streams)
      .add("shapes", shapes)
      .add("assumed", result.opened.assumed);
  return setting;
}

JsonObject memory_json(const BenchResult& result) {
  int64_t resident = 0;
  for (const Block& block : result.blocks) resident = std::max(resident, block.resident_bytes);
  JsonObject memory;
  memory.add("loaded_bytes", result.opened.loaded_bytes - result.opened.empty_bytes)
      .add("run_bytes", std::max<int64_t>(0, resident - result.opened.loaded_bytes))
      .add("peak_bytes", result.blocks.back().peak_bytes - result.opened.empty_bytes)
      .add("growth_bytes_per_run", result.growth_bytes_per_run())
      .add("device_bytes", std::nullopt);
  return memory;
}

JsonObject launch_json(const BenchResult& result) {
  const int64_t wall_ns = sum_of(result.blocks, &Block::wall_ns);
  JsonObject launch;
  launch.add("runtime", result.opened.runtime)
      .add("setting", setting_json(result))
      .add("load_ms", ms(result.opened.load_ns))
      .add("first_ms", ms(result.opened.first_ns))
      .add("warmup_runs", result.warmed.runs)
      .add("warmup_stable", result.warmed.stable)
      .add("block", result.block_runs())
      .add("samples_ns", result.samples_ns())
      .add("wall_ns", wall_ns)
      .add("cpu_ratio", static_cast<double>(sum_of(result.blocks, &Block::cpu_ns)) / static_cast<double>(wall_ns))
      .add("overhead_ns", result.opened.overhead_ns)
      .add("memory", memory_json(result));
  return launch;
}

JsonObject latency_json(const BenchResult& result) {
  const SamplesNs samples = result.samples_ns();
  SamplesNs ordered = samples;
  std::sort(ordered.begin(), ordered.end());
  std::vector<JsonObject> quantiles;
  for (const int percentile : {50, 90, 95, 99, 100}) {
    const QuantileNs found = quantile_ns(ordered, percentile);
    JsonObject quantile;
    quantile.add("percentile", percentile)
        .add("ms", ms(found.ns))
        .add("low_ms", ms(found.low_ns))
        .add("high_ms", ms(found.high_ns));
    quantiles.push_back(quantile);
  }
  const double mean = mean_ns(samples);
  double squares = 0;
  for (const int64_t sample : samples) squares += std::pow(static_cast<double>(sample) - mean, 2);
  JsonObject ratio;  // to itself, since it is the only model
  ratio.add("estimate", 1.0).add("low", 1.0).add("high", 1.0);
  JsonObject latency;
  latency.add("samples", static_cast<int64_t>(samples.size()))
      .add("quantiles", quantiles)
      .add("mean_ms", mean / kNsPerMs)
      .add("min_ms", ms(ordered.front()))
      .add("spread_ratio", std::sqrt(squares / static_cast<double>(samples.size())) / mean)
      .add("throughput_per_s", throughput_per_s(result, samples.size()))
      .add("ratio", ratio);
  return latency;
}

std::string energy_json(const std::optional<Energy>& energy) {
  if (!energy) return "null";
  JsonObject object;
  object.add("counter", energy->counter)
      .add("joules_per_run", energy->joules_per_run)
      .add("watts", energy->watts)
      .add("idle_watts", energy->idle_watts)
      .add("seconds", energy->seconds);
  return object.text();
}

std::string fixed(double value, int digits) {
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, "%.*f", digits, value);
  return buffer;
}

std::string mb(int64_t bytes) { return fixed(static_cast<double>(bytes) / kBytesPerMb, 2) + " MB"; }

std::string layers_text(const std::vector<LayerTime>& layers) {
  std::string text;
  for (const LayerTime& layer : layers) {
    text +=
        "  " + fixed(layer.ms, 4) + "  " + fixed(100 * layer.ratio, 1) + " %  " + layer.kind + "  " + layer.name + "\n";
  }
  return text;
}

// "1.234 [1.2, 1.3] ms", with the bounds that the samples reach.
std::string quantile_text(const QuantileNs& quantile) {
  const auto bound = [](const std::optional<int64_t>& ns) { return ns ? fixed(ms(*ns), 3) : std::string("?"); };
  return fixed(ms(quantile.ns), 3) + " [" + bound(quantile.low_ns) + ", " + bound(quantile.high_ns) + "]";
}

}  // namespace

std::string json_report(const BenchResult& result, const std::string& command) {
  JsonObject model;
  model.add("name", result.name)
      .add("path", result.path)
      .add("sha256", result.sha256)
      .add("size_bytes", result.size_bytes)
      .add("weights_bytes", std::nullopt)
      .add("runtime", result.opened.runtime)
      .add("setting", setting_json(result))
      .add("status", "ok")
      .add("problem", "")
      .add("launches", std::vector<JsonObject>{launch_json(result)})
      .add("latency", latency_json(result))
      .add_json("energy", energy_json(result.energy))
      .add("layers", result.layers)
      .add("roofline", std::nullopt);
  std::vector<JsonObject> warnings;
  for (const Warning& warning : result.warnings) {
    JsonObject object;
    object.add("code", warning.code)
        .add_json("model", warning.model.empty() ? "null" : json_string(warning.model))
        .add("message", warning.message);
    warnings.push_back(object);
  }
  JsonObject environment = result.environment;
  environment.add("energy_not_measured", result.energy_problems);
  JsonObject report;
  report.add("schema_version", 1)
      .add("kind", "bench")
      .add("tlc_version", TLC_VERSION)
      .add("command", command)
      .add("seed", result.seed)
      .add("environment", environment)
      .add("machine", machine_identity(result.environment))
      .add("models", std::vector<JsonObject>{model})
      .add("warnings", warnings);
  return report.text();
}

std::string text_report(const BenchResult& result) {
  SamplesNs ordered = result.samples_ns();
  std::sort(ordered.begin(), ordered.end());
  std::string inputs;
  for (const auto& shape : result.opened.shapes) {
    inputs += (inputs.empty() ? "" : ", ") + shape.first + " " + shape_text(shape.second);
  }
  std::string text = "model       " + result.path + " (" + mb(result.size_bytes) + ")\nruntime     " +
                     result.opened.runtime + ", threads: " + std::to_string(result.threads) +
                     ", streams: " + std::to_string(result.streams) + "\ninputs      " + inputs + "\nruns        " +
                     std::to_string(ordered.size()) + " after " + std::to_string(result.warmed.runs) +
                     " to warm up; loading took " + fixed(ms(result.opened.load_ns), 1) + " ms, the first run " +
                     fixed(ms(result.opened.first_ns), 3) + " ms\n\nlatency     ms, with 99 % bounds\n";
  for (const int percentile : {50, 90, 95, 99}) {
    text += "  p" + std::to_string(percentile) + "       " + quantile_text(quantile_ns(ordered, percentile)) + "\n";
  }
  text += "  mean      " + fixed(mean_ns(ordered) / kNsPerMs, 3) + ", from " + fixed(ms(ordered.front()), 3) + " to " +
          fixed(ms(ordered.back()), 3) + "\nthroughput  " + fixed(throughput_per_s(result, ordered.size()), 1) +
          " a second\nmemory      " + mb(result.opened.loaded_bytes - result.opened.empty_bytes) + " loaded, " +
          mb(result.blocks.back().peak_bytes - result.opened.empty_bytes) + " at its peak\n";
  if (result.energy) {
    text += "energy      " + fixed(result.energy->joules_per_run * 1000, 3) + " mJ a run, " +
            fixed(result.energy->watts, 2) + " W (idle " + fixed(result.energy->idle_watts, 2) + " W), " +
            result.energy->counter + "\n";
  }
  if (result.layers) text += "\nlayers      ms, in the order of execution\n" + layers_text(*result.layers);
  for (const Warning& warning : result.warnings) text += "\nwarning: " + warning.message;
  return result.warnings.empty() ? text : text + "\n";
}

}  // namespace tlc
