#include "args.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <limits>

#include "error.h"

namespace tlc {

namespace {

constexpr char kSeeHelp[] = "Run tlc-run --help for the commands and options.";

// Positional arguments are named in capitals; each is stored in the field that stands beside it.
struct Positional {
  const char* name;
  std::string Args::* field;
};

struct CommandSpec {
  const char* name;
  std::vector<Positional> positionals;
  const char* summary;
};

const std::vector<CommandSpec>& commands() {
  static const std::vector<CommandSpec> table = {
      {"check", {{"BUNDLE", &Args::model}}, "compare every file of a bundle, and its outputs, with what was recorded"},
      {"build", {{"BUNDLE", &Args::model}}, "build the engine of a TensorRT bundle on this device"},
      {"bench", {{"MODEL", &Args::model}}, "measure latency, memory and energy of a bundle, ONNX file or engine"},
      {"eval", {{"BUNDLE", &Args::model}}, "measure accuracy on labelled data"},
      {"serve-once",
       {{"BUNDLE", &Args::model}, {"INPUT", &Args::input}},
       "classify one picture, or one prepared sample in an .npz"},
      {"worker", {}, "run one model as JSON lines on stdin ask for it; tlc bench --device talks to it"},
      {"info", {}, "say what this program was built with and finds on this machine"},
  };
  return table;
}

const CommandSpec* find_command(const std::string& name) {
  for (const CommandSpec& command : commands()) {
    if (command.name == name) return &command;
  }
  return nullptr;
}

uint64_t parse_number(const std::string& option, const std::string& text, uint64_t low, uint64_t high) {
  const bool digits = !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
  // 19 digits fit into 64 bits; more are above every limit.
  const uint64_t value = digits && text.size() <= 19 ? std::strtoull(text.c_str(), nullptr, 10) : high + 1;
  if (!digits || value < low || value > high) {
    throw UsageError(option + " must be a whole number from " + std::to_string(low) + " to " + std::to_string(high) +
                         ", got '" + text + "'",
                     kSeeHelp);
  }
  return value;
}

int parse_int(const std::string& option, const std::string& text, int low, int high) {
  return static_cast<int>(parse_number(option, text, static_cast<uint64_t>(low), static_cast<uint64_t>(high)));
}

// "3", "0.5" or "3s".
double parse_seconds(const std::string& option, const std::string& text) {
  const std::string number = !text.empty() && text.back() == 's' ? text.substr(0, text.size() - 1) : text;
  char* end = nullptr;
  const double value = std::strtod(number.c_str(), &end);
  const bool plain = !number.empty() && number.find_first_not_of("0123456789.") == std::string::npos;
  if (!plain || *end != '\0' || !(value > 0) || value > 86400) {
    throw UsageError(option + " must be seconds above 0 and at most 86400, got '" + text + "'",
                     "Write it as " + option + " 3s.");
  }
  return value;
}

// "512" or "512M" is MiB, "2G" is GiB.
int64_t parse_size_bytes(const std::string& option, const std::string& text) {
  const bool gib = !text.empty() && text.back() == 'G';
  const bool unit = gib || (!text.empty() && text.back() == 'M');
  const std::string number = unit ? text.substr(0, text.size() - 1) : text;
  const uint64_t most_mib = 1 << 20;
  const uint64_t most = gib ? most_mib >> 10 : most_mib;
  return static_cast<int64_t>(parse_number(option, number, 1, most)) << (gib ? 30 : 20);
}

// Split NAME=VALUE at the last "=": names may hold any character, values cannot hold that one.
std::pair<std::string, std::string> parse_named(const std::string& option, const std::string& text,
                                                const std::string& example) {
  const size_t equals = text.rfind('=');
  if (equals == std::string::npos || equals == 0) {
    throw UsageError(option + " must be NAME=VALUE, got '" + text + "'", "Write it as " + option + " " + example + ".");
  }
  return {text.substr(0, equals), text.substr(equals + 1)};
}

std::string parse_backend(const std::string& text) {
  for (const char* name : {"onnxruntime", "openvino", "tensorrt"}) {
    if (text == name) return text;
  }
  throw UsageError("--backend must be onnxruntime, openvino or tensorrt, got '" + text + "'", kSeeHelp);
}

struct OptionSpec {
  const char* name;
  const char* value;     // what --help calls its value; "" for a flag
  const char* commands;  // that take it, each with a space around it
  const char* summary;
  std::function<void(Args&, const std::string&)> set;
};

constexpr char kRunning[] = " check build bench eval serve-once worker info ";

const std::vector<OptionSpec>& options() {
  static const std::vector<OptionSpec> table = {
      {"--json", "", " check build bench eval serve-once info ", "print the result as JSON",
       [](Args& a, const std::string&) { a.json = true; }},
      {"--threads", "N", " check bench eval serve-once ", "threads inside one inference (default: the target's, or 1)",
       [](Args& a, const std::string& v) { a.threads = parse_int("--threads", v, 1, 1024); }},
      {"--backend", "NAME", " check build bench eval serve-once worker ",
       "onnxruntime, openvino or tensorrt (default: the target's)",
       [](Args& a, const std::string& v) { a.backend = parse_backend(v); }},
      {"--ort-lib", "PATH", kRunning, "libonnxruntime to load (default: TLC_ORT_LIB, then the system's library path)",
       [](Args& a, const std::string& v) { a.ort_lib = v; }},
      {"--openvino-lib", "PATH", kRunning,
       "libopenvino_c to load (default: TLC_OPENVINO_LIB, then the system's library path)",
       [](Args& a, const std::string& v) { a.openvino_lib = v; }},
      {"--plan", "FILE", " check bench eval serve-once worker ",
       "engine of a TensorRT bundle (default: NAME.plan beside it)", [](Args& a, const std::string& v) { a.plan = v; }},
      {"--duration", "TIME", " bench ", "timed runs, in seconds (default 3s)",
       [](Args& a, const std::string& v) { a.duration_s = parse_seconds("--duration", v); }},
      {"--rounds", "N", " bench ", "rounds of blocks of runs, instead of --duration",
       [](Args& a, const std::string& v) { a.rounds = parse_int("--rounds", v, 1, 1000000); }},
      {"--batch", "N", " bench ", "samples in one inference (default 1)",
       [](Args& a, const std::string& v) { a.batch = parse_int("--batch", v, 1, 1000000); }},
      {"--streams", "N", " bench ", "inferences at once (default 1)",
       [](Args& a, const std::string& v) { a.streams = parse_int("--streams", v, 1, 1024); }},
      {"--shape", "INPUT=AxBxC", " bench ", "whole shape of an input; may be repeated",
       [](Args& a, const std::string& v) {
         const auto named = parse_named("--shape", v, "input=1x3x224x224");
         a.shapes[named.first] = parse_shape(named.second);
       }},
      {"--size", "NAME=N", " bench ", "length of an open dimension (default 1); may be repeated",
       [](Args& a, const std::string& v) {
         const auto named = parse_named("--size", v, "T=128");
         a.sizes[named.first] = parse_int("--size " + named.first, named.second, 1, std::numeric_limits<int>::max());
       }},
      {"--inputs", "FILE", " bench ",
       "an .npz of real inputs (default: a bundle's texts, else noise, zeros as tokens, masks of ones)",
       [](Args& a, const std::string& v) { a.inputs = v; }},
      {"--seed", "N", " bench ", "seed of the noise (default 0)",
       [](Args& a, const std::string& v) { a.seed = parse_number("--seed", v, 0, INT64_MAX); }},
      {"--no-energy", "", " bench ", "do not read counters of energy, which takes six seconds",
       [](Args& a, const std::string&) { a.energy = false; }},
      {"--profile", "", " bench ", "time every layer, in a run of its own",
       [](Args& a, const std::string&) { a.profile = true; }},
      {"--out", "FOLDER", " build ", "where NAME.plan and NAME.plan.json go (default: beside the bundle)",
       [](Args& a, const std::string& v) { a.out = v; }},
      {"--workspace", "SIZE", " build ", "scratch memory of the builder in MiB, or as 2G (default: from what is free)",
       [](Args& a, const std::string& v) { a.workspace_bytes = parse_size_bytes("--workspace", v); }},
      {"--data", "PATH", " eval ", "folder with one folder per class, or an .npz with x and y",
       [](Args& a, const std::string& v) { a.data = v; }},
      {"--limit", "N", " eval ", "samples at most",
       [](Args& a, const std::string& v) { a.limit = static_cast<int64_t>(parse_number("--limit", v, 1, INT64_MAX)); }},
      {"--predictions", "FILE", " eval ", "write label and prediction of every sample",
       [](Args& a, const std::string& v) { a.predictions = v; }},
      {"--top", "N", " serve-once ", "classes to print (default 5)",
       [](Args& a, const std::string& v) { a.top = parse_int("--top", v, 1, 1000000); }},
  };
  return table;
}

bool takes(const OptionSpec& option, const std::string& command) {
  return std::string(option.commands).find(" " + command + " ") != std::string::npos;
}

const OptionSpec& find_option(const std::string& name, const std::string& command) {
  for (const OptionSpec& option : options()) {
    if (option.name != name) continue;
    if (takes(option, command)) return option;
    throw UsageError("tlc-run " + command + " has no option '" + name + "'",
                     "Run tlc-run " + command + " --help for those that it has.");
  }
  throw UsageError("unknown option '" + name + "'", "Run tlc-run " + command + " --help for the options.");
}

std::string usage(const CommandSpec& command) {
  std::string text = std::string("tlc-run ") + command.name;
  for (const Positional& positional : command.positionals) text += std::string(" ") + positional.name;
  return text;
}

std::string padded(const std::string& text, size_t width) {
  return text + std::string(text.size() < width ? width - text.size() : 1, ' ');
}

Args parse_command(const CommandSpec& command, const std::vector<std::string>& words) {
  Args args;
  args.command = command.name;
  size_t given = 0;
  for (size_t i = 1; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word.rfind("--", 0) != 0) {
      if (given == command.positionals.size()) {
        throw UsageError("one argument too many: '" + word + "'", "Write it as " + usage(command) + " [OPTIONS].");
      }
      args.*(command.positionals[given++].field) = word;
      continue;
    }
    const size_t equals = word.find('=');
    const std::string name = word.substr(0, equals);
    const OptionSpec& option = find_option(name, args.command);
    if (*option.value == '\0') {
      if (equals != std::string::npos) throw UsageError(name + " takes no value", "Write it as " + name + ".");
      option.set(args, "");
      continue;
    }
    if (equals == std::string::npos && i + 1 == words.size()) {
      throw UsageError(name + " needs a value", "Write it as " + name + " " + option.value + ".");
    }
    option.set(args, equals == std::string::npos ? words[++i] : word.substr(equals + 1));
  }
  if (given < command.positionals.size()) {
    throw UsageError(std::string("no ") + command.positionals[given].name + " given",
                     "Write it as " + usage(command) + " [OPTIONS].");
  }
  if (args.command == "eval" && args.data.empty()) {
    throw UsageError("no --data given", "Write it as tlc-run eval BUNDLE --data FOLDER.");
  }
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
  if (words.empty()) throw UsageError("no command given", kSeeHelp);
  const CommandSpec* command = find_command(words[0]);
  for (const std::string& word : words) {
    if (word != "--help" && word != "-h") continue;
    Args args;
    args.command = "help";
    if (command != nullptr) args.topic = command->name;
    return args;
  }
  if (words[0] == "--version") {
    Args args;
    args.command = "version";
    return args;
  }
  if (command == nullptr) throw UsageError("unknown command '" + words[0] + "'", kSeeHelp);
  return parse_command(*command, words);
}

std::string help_text(const std::string& name) {
  const CommandSpec* command = find_command(name);
  if (command == nullptr) {
    std::string text = "Usage: tlc-run COMMAND [OPTIONS]\n\nRun compressed models on the device, without Python.\n\n";
    text += "Commands:\n";
    for (const CommandSpec& each : commands()) text += "  " + padded(each.name, 12) + each.summary + "\n";
    return text + "\ntlc-run COMMAND --help explains one; tlc-run --version prints the version.\n" +
           "Exit status: 0 done, 1 failed, 2 wrong usage, 3 not as recorded.\n";
  }
  std::string summary = command->summary;
  summary[0] = static_cast<char>(summary[0] - 'a' + 'A');
  std::string text = "Usage: " + usage(*command) + " [OPTIONS]\n\n" + summary + ".\n\nOptions:\n";
  for (const OptionSpec& option : options()) {
    if (!takes(option, name)) continue;
    text += "  " + padded(std::string(option.name) + " " + option.value, 24) + option.summary + "\n";
  }
  return text;
}

}  // namespace tlc
