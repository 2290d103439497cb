// tlc-run info: what this program was built with, and what it finds on this machine.
#include <sys/utsname.h>

#include <cstdio>

#include "backend.h"
#include "commands.h"
#include "environment.h"
#include "error.h"
#include "json_object.h"

namespace tlc {

namespace {

struct Found {
  std::string name;
  std::optional<std::string> version;
  std::string problem;
  bool named;  // whether the command line says where its library is
};

Found find(const std::string& name, const Args& args) {
  OpenOptions options;
  options.backend = name;
  options.library = name == "onnxruntime" ? args.ort_lib : name == "openvino" ? args.openvino_lib : "";
  Found found{name, std::nullopt, "", !options.library.empty()};
  try {
    found.version = load_runtime(options);
  } catch (const Error& error) {
    found.problem = error.what();
  }
  return found;
}

std::string machine() {
  utsname system{};
  return uname(&system) == 0 ? system.machine : "unknown";
}

std::string json_text(const std::vector<Found>& backends) {
  JsonObject entries, info;
  std::map<std::string, std::string> versions = {{"tlc", TLC_VERSION}};
  for (const Found& found : backends) {
    JsonObject entry;
    entry.add("version", found.version).add("problem", found.problem);
    entries.add(found.name, entry);
    if (found.version) versions[found.name] = found.version->substr(found.version->find(' ') + 1);
  }
  info.add("tlc_version", TLC_VERSION)
      .add("machine", machine())
      .add("backends", entries)
      .add("environment", environment(versions));
  return info.text() + "\n";
}

std::string plain_text(const std::vector<Found>& backends) {
  std::string text = "tlc-run " TLC_VERSION " on " + machine() + "\n";
  for (const Found& found : backends) text += found.version.value_or(found.name + ": " + found.problem) + "\n";
  return text;
}

}  // namespace

int run_info(const Args& args) {
  std::vector<Found> backends;
  for (const std::string& name : built_backends()) backends.push_back(find(name, args));
  std::fputs((args.json ? json_text(backends) : plain_text(backends)).c_str(), stdout);
  for (const Found& found : backends) {
    if (found.named && !found.version) throw Error(found.problem, "Name another library, or leave the option out.");
  }
  return 0;
}

}  // namespace tlc
