#include "bench.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <thread>

#include "commands.h"
#include "error.h"
#include "report.h"
#include "sha256.h"

namespace tlc {

namespace {

constexpr double kEnergyS = 3.0;
constexpr int kProfileRuns = 20;
constexpr double kNsPerMs = 1e6;

// Size and SHA-256 of what is deployed; of a bundle the manifest has them.
void read_file_facts(const Source& source, BenchResult& result) {
  if (source.bundle && source.plan.empty()) {
    const Json& file = source.bundle->manifest().at("files").at(source.bundle->model());
    result.sha256 = file.at("sha256").string();
    result.size_bytes = file.at("size_bytes").integer();
    return;
  }
  const std::string& path = source.plan.empty() ? source.path : source.plan;
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error("cannot read " + path, "Check the path.");
  Sha256 hash;
  std::vector<char> piece(1 << 20);
  while (file.read(piece.data(), static_cast<std::streamsize>(piece.size())) || file.gcount() > 0) {
    hash.update(piece.data(), static_cast<size_t>(file.gcount()));
    result.size_bytes += file.gcount();
  }
  result.sha256 = hash.hex();
}

std::string file_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

// "onnxruntime 1.31.1" -> {"onnxruntime": "1.31.1"}
std::map<std::string, std::string> versions(const std::string& runtime) {
  const size_t space = runtime.find(' ');
  return {{"tlc", TLC_VERSION},
          {runtime.substr(0, space), space == std::string::npos ? "" : runtime.substr(space + 1)}};
}

std::vector<Block> blocks(BlockRunner& runner, const Warmed& warmed, const Args& args) {
  std::vector<Block> found;
  int64_t timed_ns = 0;
  const auto enough = [&] {
    return args.rounds ? found.size() >= static_cast<size_t>(*args.rounds)
                       : static_cast<double>(timed_ns) >= args.duration_s * 1e9;
  };
  while (!enough()) {
    found.push_back(runner.block(warmed.block, warmed.lead_in));
    timed_ns += found.back().wall_ns;
  }
  return found;
}

Energy measure_energy(BlockRunner& runner, Meter& meter, double idle_watts) {
  RanFor ran{};
  const double watts = mean_watts(meter, [&] { ran = runner.run_for(kEnergyS); });
  return {meter.name(), watts * ran.seconds / static_cast<double>(ran.runs), watts, idle_watts, ran.seconds};
}

Measured measured(const BenchResult& result) {
  return {result.name,
          result.samples_ns(),
          result.block_runs(),
          static_cast<double>(result.opened.first_ns) / kNsPerMs,
          result.warmed.stable,
          result.warmed.runs,
          result.growth_bytes_per_run(),
          result.opened.assumed};
}

}  // namespace

int BenchResult::batch() const {
  return opened.shapes.empty() || opened.shapes[0].second.empty() ? 1 : static_cast<int>(opened.shapes[0].second[0]);
}

SamplesNs BenchResult::samples_ns() const {
  SamplesNs samples;
  for (const Block& block : blocks) samples.insert(samples.end(), block.samples_ns.begin(), block.samples_ns.end());
  return samples;
}

double BenchResult::growth_bytes_per_run() const {
  std::vector<int64_t> resident;
  for (const Block& block : blocks) resident.push_back(block.resident_bytes);
  return growth_bytes(resident) / (block_runs() + (warmed.lead_in ? 1 : 0));
}

BenchResult bench(const Args& args) {
  RunRequest request;
  request.source = find_source(args.model, args);
  request.streams = args.streams;
  request.sizes = {args.batch, args.sizes, args.shapes};
  request.feeds = args.inputs;
  request.seed = args.seed;

  BenchResult result{};
  result.name = file_name(args.model);
  result.path = args.model;
  read_file_facts(request.source, result);
  result.seed = args.seed;
  result.threads = request.source.options.threads;
  result.streams = args.streams;

  Meters meters;
  if (args.energy) meters = open_meters();
  result.energy_problems = meters.problems;
  Meter* meter = meters.found.empty() ? nullptr : meters.found.front().get();
  const Snapshot before = snapshot();
  double idle_watts = 0;
  if (meter != nullptr) {
    idle_watts = mean_watts(*meter, [] { std::this_thread::sleep_for(std::chrono::duration<double>(kEnergyS)); });
  }
  BlockRunner runner(request);
  result.opened = runner.opened();
  result.environment = environment(versions(result.opened.runtime));
  result.warmed = runner.warm();
  result.blocks = blocks(runner, result.warmed, args);
  if (meter != nullptr) result.energy = measure_energy(runner, *meter, idle_watts);

  if (args.profile) result.layers = runner.profile(kProfileRuns);
  result.warnings = machine_warnings(before, snapshot());
  for (Warning& warning : model_warnings(measured(result))) result.warnings.push_back(std::move(warning));
  return result;
}

int run_bench(const Args& args) {
  const BenchResult result = bench(args);
  const std::string text = args.json ? json_report(result, "tlc-run bench " + args.model) + "\n" : text_report(result);
  std::fputs(text.c_str(), stdout);
  return 0;
}

}  // namespace tlc
