#include "profile.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <numeric>

#include "error.h"
#include "json_object.h"
#include "ort.h"

namespace tlc {

namespace {

constexpr int kWarmRuns = 10;
constexpr char kKernel[] = "_kernel_time";

// A folder of its own for the profile, which goes with what is in it.
class ProfileFolder {
 public:
  ProfileFolder() {
    const char* base = std::getenv("TMPDIR");
    path_ = std::string(base == nullptr || *base == '\0' ? "/tmp" : base) + "/tlc-profile-XXXXXX";
    if (mkdtemp(&path_[0]) == nullptr) {
      throw Error("cannot make the folder " + path_ + ": " + std::strerror(errno),
                  "Set TMPDIR to a folder that can be written to.");
    }
  }
  ~ProfileFolder() {
    if (!file.empty()) unlink(file.c_str());
    rmdir(path_.c_str());
  }
  ProfileFolder(const ProfileFolder&) = delete;
  ProfileFolder& operator=(const ProfileFolder&) = delete;

  const std::string& path() const { return path_; }

  std::string file;

 private:
  std::string path_;
};

// One execution of one node.
struct Event {
  int64_t start_us;
  int64_t duration_us;
  std::string node;  // its place in the graph
  std::string name;
  std::string kind;
};

bool ends_with(const std::string& text, const std::string& suffix) {
  return text.size() >= suffix.size() && text.compare(text.size() - suffix.size(), suffix.size(), suffix) == 0;
}

std::vector<Event> read_events(std::istream& trace) {
  std::vector<Event> events;
  for (std::string line; std::getline(trace, line);) {
    const size_t begin = line.find('{'), end = line.rfind('}');
    if (begin == std::string::npos || end == std::string::npos) continue;  // the list's own brackets
    const Json event = Json::parse(line.substr(begin, end + 1 - begin));
    const std::string& name = event.at("name").string();
    if (event.at("cat").string() != "Node" || !ends_with(name, kKernel)) continue;
    const Json& details = event.at("args");
    const Json* node = details.find("node_index");
    events.push_back({event.at("ts").integer(), event.at("dur").integer(), node == nullptr ? "" : node->string(),
                      name.substr(0, name.size() - std::strlen(kKernel)), details.at("op_name").string()});
  }
  // Of two that begin in the same microsecond, the one around the other is the longer one.
  std::stable_sort(events.begin(), events.end(), [](const Event& a, const Event& b) {
    return a.start_us != b.start_us ? a.start_us < b.start_us : a.duration_us > b.duration_us;
  });
  return events;
}

// The mean of the middle half: as robust as a median, and finer than whole microseconds.
double middle(std::vector<int64_t> times) {
  std::sort(times.begin(), times.end());
  const auto cut = static_cast<std::ptrdiff_t>(times.size() / 4);
  const auto begin = times.begin() + cut, end = times.end() - cut;
  return static_cast<double>(std::accumulate(begin, end, int64_t{0})) / static_cast<double>(end - begin);
}

}  // namespace

std::vector<LayerTime> read_ort_profile(std::istream& trace, int runs) {
  struct Layer {
    std::string name;
    std::string kind;
    std::vector<int64_t> times_us;
  };
  std::vector<Layer> layers;
  std::map<std::pair<std::string, std::string>, size_t> places;
  int64_t inside_until = -1;
  for (const Event& event : read_events(trace)) {
    const int64_t end_us = event.start_us + event.duration_us;
    if (event.start_us < inside_until && end_us <= inside_until) continue;
    // Their time includes that of the nodes inside them.
    if (event.kind == "If" || event.kind == "Loop" || event.kind == "Scan") inside_until = end_us;
    const auto place = places.emplace(std::make_pair(event.node, event.name), layers.size()).first->second;
    if (place == layers.size()) layers.push_back({event.name, event.kind, {}});
    layers[place].times_us.push_back(event.duration_us);
  }
  std::vector<LayerTime> found;
  double sum_us = 0;
  for (const Layer& layer : layers) {
    const size_t last = std::min(layer.times_us.size(), static_cast<size_t>(runs));
    const double us = middle({layer.times_us.end() - static_cast<std::ptrdiff_t>(last), layer.times_us.end()});
    found.push_back({layer.name, layer.kind, us / 1000, us});
    sum_us += us;
  }
  for (LayerTime& layer : found) layer.ratio = sum_us > 0 ? layer.ratio / sum_us : 0;
  return found;
}

std::vector<LayerTime> layer_times(const Source& source, const Feeds& feeds, int runs) {
  if (source.options.backend != "onnxruntime") {
    throw Error("tlc-run does not time the layers of " + source.options.backend + ", only those of onnxruntime",
                "Leave --profile out, or measure layers where tlc is installed.");
  }
  ProfileFolder folder;
  Source profiled = source;
  profiled.options.profile = folder.path() + "/run";
  const std::unique_ptr<Model> model = open_source(profiled);
  {
    const std::unique_ptr<Context> context = model->make_context();
    std::vector<Tensor> outputs;
    for (int i = 0; i < kWarmRuns + runs; ++i) context->run(feeds, outputs);
  }
  folder.file = end_ort_profile(*model);
  std::ifstream trace(folder.file);
  if (!trace) throw Error("cannot read ONNX Runtime's profile " + folder.file, "Check the disk that TMPDIR is on.");
  return read_ort_profile(trace, runs);
}

std::string json_value(const LayerTime& layer) {
  JsonObject object;
  object.add("name", layer.name).add("kind", layer.kind).add("ms", layer.ms).add("ratio", layer.ratio);
  return object.text();
}

}  // namespace tlc
