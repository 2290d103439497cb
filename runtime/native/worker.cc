// tlc-run worker: the protocol of runtime/worker.py. Requests come as JSON objects, one a line, on stdin; each is
// answered by one on what was stdout, which belongs to nobody else: whatever a library prints goes to stderr. The
// first request says what to open, every other has a key "do": "warm", "block", "run_for" or "profile".
#include <signal.h>
#include <unistd.h>

#ifdef __linux__
#include <sys/prctl.h>
#endif

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <mutex>
#include <new>
#include <thread>

#include "commands.h"
#include "error.h"
#include "json.h"
#include "json_object.h"
#include "memory.h"
#include "runner.h"

namespace tlc {

namespace {

constexpr auto kWatchInterval = std::chrono::milliseconds(100);

const char* const kKeys[] = {"path",  "target", "threads", "streams", "batch",
                             "sizes", "shapes", "feeds",   "options", "memory_bytes"};

// What was stdout. Answers come from two threads: the one that works and the one that watches memory.
class Answers {
 public:
  Answers() : file_(fdopen(dup(STDOUT_FILENO), "w")) {
    if (file_ == nullptr || dup2(STDERR_FILENO, STDOUT_FILENO) < 0) {
      throw Error("stdout cannot be written to", "Start tlc-run worker with open pipes.");
    }
  }
  ~Answers() { std::fclose(file_); }
  Answers(const Answers&) = delete;
  Answers& operator=(const Answers&) = delete;

  void give(const JsonObject& answer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::fputs((answer.text() + "\n").c_str(), file_);
    std::fflush(file_);
  }

  // The keys that runtime/process.py reads.
  void fail(const std::string& message, const std::string& hint) {
    JsonObject answer;
    answer.add("status", is_out_of_memory(message) ? "out_of_memory" : "failed")
        .add("error", message)
        .add("hint", hint);
    give(answer);
  }

 private:
  static bool is_out_of_memory(std::string message) {
    std::transform(message.begin(), message.end(), message.begin(),
                   [](unsigned char character) { return static_cast<char>(std::tolower(character)); });
    for (const char* sign : {"allocate memory", "bad_alloc", "bad alloc", "out of memory", "std::length_error"}) {
      if (message.find(sign) != std::string::npos) return true;
    }
    return false;
  }

  std::FILE* file_;
  std::mutex mutex_;
};

// Let the kernel end this process with its parent, and end this one first when memory runs out.
void die_with_parent() {
#ifdef __linux__
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  std::ofstream("/proc/self/oom_score_adj") << "1000";  // proc(5): raising it is always allowed
#endif
}

// End this process, with an answer, once it holds more than it may.
void watch(int64_t limit_bytes, Answers& answers) {
  int64_t held = 0;
  while ((held = resident_bytes()) <= limit_bytes) std::this_thread::sleep_for(kWatchInterval);
  answers.fail("out of memory: it took " + std::to_string(held / 1000000) + " MB, the limit is " +
                   std::to_string(limit_bytes / 1000000) + " MB",
               "Allow more, free some, or run a smaller batch.");
  _exit(0);  // whatever the model is doing
}

// The runtime that a target of runtime/target.py asks for; empty where there is none.
std::string runtime_of(const Json* target) {
  if (target == nullptr) return "";
  const Json* provider = target->find("provider");
  if (provider != nullptr && provider->string() != "cpu") {
    throw Error("target " + target->at("name").string() + " runs ONNX Runtime's provider " + provider->string() +
                    ", and tlc-run has that of the CPU alone",
                "Choose a target with the provider cpu, or with the runtime openvino or tensorrt.");
  }
  return target->at("runtime").string();
}

int positive(const Json& json, const std::string& key) {
  const int64_t value = json.at(key).integer();
  if (value < 1 || value > 1000000) {
    throw Error(key + " must be from 1 to 1000000, got " + std::to_string(value), "Correct the request.");
  }
  return static_cast<int>(value);
}

RunRequest parse_request(const Json& json, const Args& given) {
  for (const auto& member : json.object()) {
    if (std::find(std::begin(kKeys), std::end(kKeys), member.first) == std::end(kKeys)) {
      throw Error("unknown key '" + member.first + "' in the request", "Use a tlc-run of the same version as tlc.");
    }
  }
  Args args = given;
  const std::string path = json.at("path").string();
  const bool is_onnx = path.size() > 5 && path.compare(path.size() - 5, 5, ".onnx") == 0;
  // Engines run in TensorRT whatever the target; a bundle brings its own.
  const std::string runtime = runtime_of(json.find("target"));
  if (args.backend.empty() && is_onnx) args.backend = runtime;
  args.threads = positive(json, "threads");

  RunRequest request;
  request.source = find_source(path, args);
  request.streams = positive(json, "streams");
  request.sizes.batch = positive(json, "batch");
  for (const auto& size : json.at("sizes").object()) request.sizes.sizes[size.first] = size.second.integer();
  for (const auto& shape : json.at("shapes").object()) {
    for (const Json& dim : shape.second.array()) request.sizes.shapes[shape.first].push_back(dim.integer());
  }
  if (const Json* feeds = json.find("feeds")) request.feeds = feeds->string();
  return request;
}

JsonObject opened_json(const Opened& opened) {
  JsonObject shapes, answer;
  for (const auto& shape : opened.shapes) shapes.add(shape.first, shape.second);
  answer.add("load_ns", opened.load_ns)
      .add("first_ns", opened.first_ns)
      .add("empty_bytes", opened.empty_bytes)
      .add("empty_peak_bytes", opened.empty_peak_bytes)
      .add("loaded_bytes", opened.loaded_bytes)
      .add("runtime", opened.runtime)
      .add("shapes", shapes)
      .add("assumed", opened.assumed)
      .add("overhead_ns", opened.overhead_ns);
  return answer;
}

JsonObject warmed_json(const Warmed& warmed) {
  JsonObject answer;
  answer.add("runs", warmed.runs)
      .add("stable", warmed.stable)
      .add("block", warmed.block)
      .add("lead_in", warmed.lead_in);
  return answer;
}

JsonObject block_json(const Block& block) {
  JsonObject answer;
  answer.add("samples_ns", block.samples_ns)
      .add("wall_ns", block.wall_ns)
      .add("cpu_ns", block.cpu_ns)
      .add("resident_bytes", block.resident_bytes)
      .add("peak_bytes", block.peak_bytes);
  return answer;
}

JsonObject ran_json(const RanFor& ran) {
  JsonObject answer;
  answer.add("runs", ran.runs).add("seconds", ran.seconds);
  return answer;
}

JsonObject layers_json(const std::vector<LayerTime>& layers) {
  JsonObject answer;
  answer.add("layers", layers);
  return answer;
}

JsonObject answer_to(const Json& asked, BlockRunner& runner) {
  const std::string& what = asked.at("do").string();
  if (what == "warm") return warmed_json(runner.warm());
  if (what == "block") return block_json(runner.block(positive(asked, "runs"), asked.at("lead_in").boolean()));
  if (what == "run_for") return ran_json(runner.run_for(asked.at("seconds").number()));
  if (what == "profile") return layers_json(runner.profile(positive(asked, "runs")));
  throw Error("unknown request '" + what + "'", "Use a tlc-run of the same version as tlc.");
}

void serve(const Args& args, Answers& answers) {
  std::string line;
  if (!std::getline(std::cin, line)) return;
  const Json first = Json::parse(line);
  if (const Json* limit = first.find("memory_bytes")) {
    std::thread(watch, limit->integer(), std::ref(answers)).detach();
  }
  BlockRunner runner(parse_request(first, args));
  answers.give(opened_json(runner.opened()));
  while (std::getline(std::cin, line)) answers.give(answer_to(Json::parse(line), runner));
}

}  // namespace

int run_worker(const Args& args) {
  // Never destroyed: the thread that watches memory may answer until the process ends.
  static Answers& answers = *new Answers();
  die_with_parent();
  try {
    serve(args, answers);
  } catch (const Error& error) {
    answers.fail(error.what(), error.hint);
  } catch (const std::bad_alloc&) {
    answers.fail("out of memory", "Free some, or run a smaller batch.");
  } catch (const std::exception& error) {
    answers.fail(std::string("internal error: ") + error.what(), "");
  }
  return 0;
}

}  // namespace tlc
