// tlc-run build: a bundle's engine, built on the device that runs it.
//
// Builders are killed by the kernel when memory runs out, and crash on some graphs, so everything that loads CUDA or
// TensorRT happens in children.
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "build_limits.h"
#include "build_record.h"
#include "bundle.h"
#include "child.h"
#include "commands.h"
#include "error.h"
#include "files.h"
#include "json_object.h"
#include "plan.h"
#include "tensorrt.h"
#include "tensorrt_build.h"

namespace tlc {

namespace {

constexpr size_t kTries = 4;
constexpr char kPowerMode[] = "/var/lib/nvpmodel/status";

Shape shape_from(const Json& json) {
  Shape shape;
  for (const Json& dim : json.array()) shape.push_back(dim.integer());
  return shape;
}

std::vector<std::string> texts_from(const Json& json) {
  std::vector<std::string> texts;
  for (const Json& text : json.array()) texts.push_back(text.string());
  return texts;
}

Wanted wanted_from(const Bundle& bundle) {
  const Json& manifest = bundle.manifest();
  const Json& target = manifest.at("target");
  const Json& tensorrt = target.at("tensorrt");
  const Json& build = manifest.at("build");
  Wanted wanted;
  wanted.onnx_member = bundle.model();
  wanted.target = target.at("name").string();
  wanted.target_version = tensorrt.at("version").string();
  wanted.target_sm = texts_from(tensorrt.at("sm"));
  const Json* workspace = build.find("workspace_bytes");
  wanted.target_workspace_bytes = (workspace != nullptr ? *workspace : tensorrt.at("workspace_bytes")).integer();
  wanted.request.name = bundle.model();
  // Builder flags for precisions are deprecated from 10.12 and gone in 11: there they stand in the file.
  wanted.request.strongly_typed = is_from(wanted.target_version, 10, 12);
  wanted.request.precision = manifest.at("precision").string();
  const std::vector<std::string> precisions = texts_from(target.at("precisions"));
  const bool has_fp16 = std::find(precisions.begin(), precisions.end(), "fp16") != precisions.end();
  // Layers that stay float run in float16 then; with int8 alone they would run in float32.
  if (wanted.request.precision == "int8" && has_fp16 && !wanted.request.strongly_typed) {
    wanted.request.precision = "best";
  }
  for (const auto& input : build.at("profile").object()) {
    wanted.request.shapes[input.first] = {shape_from(input.second.at("min")), shape_from(input.second.at("opt")),
                                          shape_from(input.second.at("max"))};
  }
  if (const Json* level = build.find("builder_level"))
    wanted.request.builder_level = static_cast<int>(level->integer());
  return wanted;
}

[[noreturn]] void fail(const ChildEnd& end, const std::string& what) {
  if (end.signal == 0) throw Error(end.error, end.hint);
  throw Error(what + " was ended by signal " + std::to_string(end.signal) + " (" + strsignal(end.signal) + ")",
              "Check that the GPU works: nvidia-smi, or on a Jetson tegrastats.");
}

EngineMachine find_machine() {
  const ChildEnd end = run_in_child([](const Stage&) {
    const EngineMachine machine = engine_machine();
    return JsonObject()
        .add("tensorrt", machine.tensorrt)
        .add("gpu", machine.gpu.name)
        .add("sm", machine.gpu.sm)
        .add("integrated", machine.gpu.integrated)
        .add("free_bytes", machine.gpu.free_bytes)
        .add("total_bytes", machine.gpu.total_bytes)
        .text();
  });
  if (!end.done) fail(end, "asking for the GPU and TensorRT");
  const Json found = Json::parse(end.result);
  EngineMachine machine;
  machine.tensorrt = found.at("tensorrt").string();
  machine.gpu.name = found.at("gpu").string();
  machine.gpu.sm = found.at("sm").string();
  machine.gpu.integrated = found.at("integrated").boolean();
  machine.gpu.free_bytes = found.at("free_bytes").integer();
  machine.gpu.total_bytes = found.at("total_bytes").integer();
  return machine;
}

// Return warnings; throws Error when this machine's TensorRT cannot make what the target is for.
std::vector<std::string> check_machine(const Wanted& wanted, const EngineMachine& machine) {
  int major = 0;
  int minor = 0;
  std::sscanf(wanted.target_version.c_str(), "%d.%d", &major, &minor);
  if (!is_from(machine.tensorrt, major, minor) || is_from(machine.tensorrt, major + 1, 0)) {
    throw Error("target " + wanted.target + " is for TensorRT " + wanted.target_version + ", and this machine has " +
                    machine.tensorrt,
                "Pack a bundle for the target whose TensorRT this machine has: tlc targets.");
  }
  std::vector<std::string> warnings;
  if (!same_version(machine.tensorrt, wanted.target_version)) {
    warnings.push_back("Built by TensorRT " + machine.tensorrt + "; target " + wanted.target + " is described for " +
                       wanted.target_version + ".");
  }
  if (std::find(wanted.target_sm.begin(), wanted.target_sm.end(), machine.gpu.sm) == wanted.target_sm.end()) {
    std::string sm;
    for (const std::string& known : wanted.target_sm) sm += (sm.empty() ? "" : ", ") + known;
    warnings.push_back("Built on SM " + machine.gpu.sm + " (" + machine.gpu.name + "): it does not run on " +
                       wanted.target + ", which has SM " + sm + ".");
  }
  return warnings;
}

// Return the first line of a file; empty where there is none.
std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::optional<int64_t> available_bytes() {
  std::ifstream file("/proc/meminfo");
  std::string line;
  while (std::getline(file, line)) {
    long long kib = 0;
    if (std::sscanf(line.c_str(), "MemAvailable: %lld kB", &kib) == 1) return int64_t{kib} * 1024;
  }
  return std::nullopt;
}

void require_free_space(const std::string& folder, int64_t needed) {
  struct statvfs disk{};
  if (statvfs(folder.c_str(), &disk) != 0) return;  // writing says what is wrong with the folder
  const auto free = static_cast<int64_t>(disk.f_bavail) * static_cast<int64_t>(disk.f_frsize);
  if (free >= needed) return;
  throw Error("the engine needs about " + std::to_string(needed) + " bytes in " + folder + ", which has " +
                  std::to_string(free) + " free",
              "Make room, or name another folder with --out.");
}

// A failed try in words: TensorRT's own, or what ended its process.
Error failure_of(const ChildEnd& end, const std::string& limits) {
  if (end.signal == 0) {
    switch (cause_of(end.error)) {
      case Cause::kMemory:
        return Error(end.error, "Memory ran out (" + limits +
                                    "): stop what else uses the GPU, or give the builder less with --workspace.");
      case Cause::kNoKernel:
        return Error(end.error, "No kernel fits that layer. Mostly the workspace is too small (" + limits +
                                    "): raise --workspace. Else the driver is older than TensorRT wants.");
      case Cause::kOther:
        return Error(end.error, end.hint.empty() ? "The words above are TensorRT's own." : end.hint);
    }
  }
  const std::string during = end.stage.empty() ? "" : " while " + end.stage;
  if (end.signal == SIGKILL) {
    return Error("TensorRT's build was ended by SIGKILL" + during + ": the system kills what takes the last memory (" +
                     limits + ")",
                 "Give it less with --workspace, add swap, or close the desktop.");
  }
  return Error("TensorRT's build was ended by signal " + std::to_string(end.signal) + " (" + strsignal(end.signal) +
                   ")" + during + ": TensorRT itself crashed",
               "Try tlc check on the file, or the next patch release of TensorRT.");
}

Cause cause_of_end(const ChildEnd& end) {
  if (end.signal != 0) return end.signal == SIGKILL ? Cause::kMemory : Cause::kOther;
  return cause_of(end.error);
}

ChildEnd try_once(const Attempt& attempt) {
  return run_in_child([&attempt](const Stage& stage) {
    const BuiltPlan built = build_plan(attempt.request, stage);
    replace_file(attempt.part, built.plan);
    return engine_record(attempt, built);
  });
}

// Build with other limits where memory ran out or no kernel fitted, and return the record.
std::string build_with_retries(Attempt attempt, bool workspace_given) {
  const int64_t free = attempt.machine.gpu.free_bytes;
  while (true) {
    const std::string limits = limits_text(attempt.request.pools_bytes, attempt.request.builder_level);
    std::fprintf(stderr, "building %s with %s\n", attempt.request.name.c_str(), limits.c_str());
    const ChildEnd end = try_once(attempt);
    if (end.done) return end.result;
    unlink(attempt.part.c_str());
    const Error failure = failure_of(end, limits);
    const Cause cause = cause_of_end(end);
    const std::optional<Pools> other = cause == Cause::kMemory     ? smaller(attempt.request.pools_bytes)
                                       : cause == Cause::kNoKernel ? larger(attempt.request.pools_bytes, free)
                                                                   : std::nullopt;
    if (!other || workspace_given || attempt.attempts.size() + 1 >= kTries) {
      std::string tried;
      for (const std::string& words : attempt.attempts) tried += (tried.empty() ? " (tried before: " : "; ") + words;
      throw Error(failure.what() + tried + (tried.empty() ? "" : ")"), failure.hint);
    }
    std::fprintf(stderr, "failed: %s\n", failure.what());
    attempt.attempts.push_back(limits + ": " + failure.what());
    attempt.request.pools_bytes = *other;
    attempt.request.aux_streams = 0;
    if (cause == Cause::kMemory && !attempt.request.builder_level && is_from(attempt.machine.tensorrt, 8, 6)) {
      attempt.request.builder_level = 2;
    }
  }
}

std::string plan_path(const std::string& bundle, const std::string& out) {
  const size_t slash = bundle.rfind('/');
  std::string stem = slash == std::string::npos ? bundle : bundle.substr(slash + 1);
  if (stem.size() > 4 && stem.compare(stem.size() - 4, 4, ".tlc") == 0) stem.resize(stem.size() - 4);
  const std::string folder = !out.empty() ? out : slash == std::string::npos ? "." : bundle.substr(0, slash);
  return folder + "/" + stem + ".plan";
}

void print_summary(const std::string& path, const Json& record) {
  std::printf("wrote %s, %lld bytes, and its record beside it\n", path.c_str(),
              static_cast<long long>(record.at("plan_bytes").integer()));
  std::printf("TensorRT %s, %s on %s (SM %s), built in %.1f s\n", record.at("tensorrt").string().c_str(),
              record.at("precision").string().c_str(), record.at("gpu").string().c_str(),
              record.at("sm").string().c_str(), record.at("build_s").number());
  for (const std::string& words : texts_from(record.at("attempts"))) std::printf("tried before: %s\n", words.c_str());
  for (const std::string& words : texts_from(record.at("warnings"))) std::printf("warning: %s\n", words.c_str());
}

}  // namespace

int run_build(const Args& args) {
  const Bundle bundle(args.model);
  const std::string runtime = args.backend.empty() ? bundle.runtime() : args.backend;
  if (runtime != "tensorrt") {
    if (args.json) {
      std::printf("%s\n", JsonObject().add("built", false).add("runtime", runtime).text().c_str());
    } else {
      std::printf("%s runs in %s: nothing is to be built\n", bundle.name().c_str(), runtime.c_str());
    }
    return 0;
  }
  Attempt attempt;
  const Wanted wanted = wanted_from(bundle);
  const std::string path = plan_path(args.model, args.out);
  attempt.wanted = &wanted;
  attempt.machine = find_machine();
  attempt.warnings = check_machine(wanted, attempt.machine);
  attempt.power_mode = first_line(kPowerMode);
  attempt.request = wanted.request;
  attempt.request.onnx = bundle.read(wanted.onnx_member);
  attempt.request.pools_bytes = pool_limits(wanted.target_workspace_bytes, attempt.machine.gpu,
                                            attempt.machine.tensorrt, available_bytes(), args.workspace_bytes);
  attempt.request.timing_cache = timing_cache_path(attempt.machine.tensorrt, attempt.machine.gpu, attempt.power_mode);
  attempt.part = path + ".part";
  const std::string folder = path.substr(0, path.rfind('/'));
  make_folders(folder);
  require_free_space(folder, 2 * static_cast<int64_t>(attempt.request.onnx.size()));

  const std::string record = with_feeding(build_with_retries(attempt, args.workspace_bytes.has_value()), bundle);
  if (std::rename(attempt.part.c_str(), path.c_str()) != 0) {
    unlink(attempt.part.c_str());
    throw Error("cannot write " + path, "Check the folder and its permissions.");
  }
  replace_file(path + ".json", record + "\n");  // last: a plan without its record is refused
  if (args.json) {
    std::printf("%s\n", record.c_str());
  } else {
    print_summary(path, Json::parse(record));
  }
  return 0;
}

}  // namespace tlc
