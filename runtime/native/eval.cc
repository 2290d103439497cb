// tlc-run eval: how many of the labelled samples the model gets right, here.
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <optional>

#include "backend.h"
#include "bundle.h"
#include "commands.h"
#include "error.h"
#include "files.h"
#include "json_object.h"
#include "opening.h"
#include "samples.h"
#include "stats.h"
#include "values.h"

namespace tlc {

namespace {

constexpr size_t kTop5Classes = 6;  // with fewer, five guesses are nearly all
constexpr double kNsPerMs = 1e6;

struct ClassCount {
  int64_t support = 0;
  int64_t correct = 0;
};

struct Evaluation {
  std::string runtime;
  std::vector<std::string> classes;
  std::vector<std::string> names;  // of the samples
  std::vector<int64_t> labels;
  std::vector<int64_t> predicted;
  std::vector<ClassCount> per_class;
  int64_t top5 = 0;
  SamplesNs input_ns;  // reading and preprocessing, by sample
  SamplesNs run_ns;    // the model alone

  int64_t correct() const {
    int64_t count = 0;
    for (const ClassCount& each : per_class) count += each.correct;
    return count;
  }
  double top1() const { return static_cast<double>(correct()) / static_cast<double>(labels.size()); }
};

// How many classes come before the right one; ties go to the lower class.
size_t rank(const std::vector<double>& scores, size_t label) {
  size_t before = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (scores[i] > scores[label] || (scores[i] == scores[label] && i < label)) ++before;
  }
  return before;
}

class Progress {
 public:
  void show(size_t done, size_t total) {
    const auto now = std::chrono::steady_clock::now();
    if (isatty(STDERR_FILENO) == 0 || now - last_ < std::chrono::seconds(1)) return;
    last_ = now;
    std::fprintf(stderr, "\r%zu of %zu samples", done, total);
    shown_ = true;
  }
  ~Progress() {
    if (shown_) std::fputs("\r\033[K", stderr);
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
  bool shown_ = false;
};

void add(Evaluation& result, const Samples& samples, size_t index, const std::vector<double>& scores) {
  const int64_t label = samples.label(index);
  if (label >= static_cast<int64_t>(scores.size())) {
    throw Error(samples.name(index) + " has label " + std::to_string(label) + ", the model has " +
                    std::to_string(scores.size()) + " classes",
                "Give the data that this model was made for.");
  }
  const size_t place = rank(scores, static_cast<size_t>(label));
  result.per_class.resize(scores.size());
  ClassCount& own = result.per_class[static_cast<size_t>(label)];
  own.support += 1;
  own.correct += place == 0 ? 1 : 0;
  result.top5 += place < 5 ? 1 : 0;
  result.names.push_back(samples.name(index));
  result.labels.push_back(label);
  result.predicted.push_back(static_cast<int64_t>(best_class(scores)));
}

Evaluation evaluate(const Bundle& bundle, const Args& args) {
  const std::unique_ptr<Model> model = open_bundle(bundle, args);
  const std::unique_ptr<Samples> samples = open_samples(args.data, bundle, model->inputs());
  const std::unique_ptr<Context> context = model->make_context();
  const size_t count = args.limit ? std::min(samples->size(), static_cast<size_t>(*args.limit)) : samples->size();
  Evaluation result;
  result.runtime = model->runtime();
  result.classes = samples->classes();
  std::vector<Tensor> outputs;
  Progress progress;
  for (size_t i = 0; i < count; ++i) {
    // Spread evenly, because a folder's samples come class by class.
    const auto index = static_cast<size_t>(static_cast<uint64_t>(i) * samples->size() / count);
    const auto start = std::chrono::steady_clock::now();
    const std::vector<Tensor> feeds = samples->feeds(index);
    const auto fed = std::chrono::steady_clock::now();
    context->run(feeds, outputs);
    const auto done = std::chrono::steady_clock::now();
    result.input_ns.push_back(std::chrono::duration_cast<std::chrono::nanoseconds>(fed - start).count());
    result.run_ns.push_back(std::chrono::duration_cast<std::chrono::nanoseconds>(done - fed).count());
    add(result, *samples, index, class_scores(outputs, result.classes.size(), batch_of(model->inputs())));
    progress.show(i + 1, count);
  }
  return result;
}

double p50_ms(const SamplesNs& samples) { return static_cast<double>(median_ns(samples)) / kNsPerMs; }

std::string json_text(const Evaluation& result, const Bundle& bundle, const Args& args) {
  std::vector<JsonObject> per_class;
  for (size_t i = 0; i < result.per_class.size(); ++i) {
    const ClassCount& own = result.per_class[i];
    std::optional<double> recall;
    if (own.support > 0) recall = static_cast<double>(own.correct) / static_cast<double>(own.support);
    per_class.push_back(JsonObject()
                            .add("name", class_name(result.classes, i))
                            .add("support", own.support)
                            .add("correct", own.correct)
                            .add("recall", recall));
  }
  std::optional<double> top5;
  if (result.per_class.size() >= kTop5Classes) {
    top5 = static_cast<double>(result.top5) / static_cast<double>(result.labels.size());
  }
  return JsonObject()
             .add("bundle", bundle.name())
             .add("data", args.data)
             .add("runtime", result.runtime)
             .add("threads", args.threads.value_or(bundle.threads()))
             .add("samples", static_cast<int64_t>(result.labels.size()))
             .add("correct", result.correct())
             .add("top1", result.top1())
             .add("top5", top5)
             .add("per_class", per_class)
             .add("input_p50_ms", p50_ms(result.input_ns))
             .add("run_p50_ms", p50_ms(result.run_ns))
             .text() +
         "\n";
}

std::string plain_text(const Evaluation& result, const Bundle& bundle) {
  char line[160];
  std::snprintf(line, sizeof line, "%s: %.2f %% right, %lld of %zu samples; %s\n", bundle.name().c_str(),
                100 * result.top1(), static_cast<long long>(result.correct()), result.labels.size(),
                result.runtime.c_str());
  std::string text = line;
  for (size_t i = 0; i < result.per_class.size(); ++i) {
    const ClassCount& own = result.per_class[i];
    if (own.support == 0) continue;
    std::snprintf(line, sizeof line, "  %6.2f %%  %5lld of %5lld  ",
                  100 * static_cast<double>(own.correct) / static_cast<double>(own.support),
                  static_cast<long long>(own.correct), static_cast<long long>(own.support));
    text += line + class_name(result.classes, i) + "\n";
  }
  std::snprintf(line, sizeof line, "p50 of a sample: %.3f ms to read and prepare it, %.3f ms to run it\n",
                p50_ms(result.input_ns), p50_ms(result.run_ns));
  return text + line;
}

std::string predictions_text(const Evaluation& result) {
  return JsonObject()
             .add("classes", result.classes)
             .add("names", result.names)
             .add("labels", result.labels)
             .add("predicted", result.predicted)
             .text() +
         "\n";
}

}  // namespace

int run_eval(const Args& args) {
  const Bundle bundle(args.model);
  const Evaluation result = evaluate(bundle, args);
  if (!args.predictions.empty()) replace_file(args.predictions, predictions_text(result));
  const std::string text = args.json ? json_text(result, bundle, args) : plain_text(result, bundle);
  std::fputs(text.c_str(), stdout);
  return 0;
}

}  // namespace tlc
