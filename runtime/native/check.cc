// tlc-run check: whether a bundle is whole, and this device computes what was recorded where it was packed.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <optional>

#include "backend.h"
#include "bundle.h"
#include "commands.h"
#include "error.h"
#include "json_object.h"
#include "opening.h"
#include "samples.h"
#include "values.h"

namespace tlc {

namespace {

constexpr double kPictureTolerance = 1e-6;  // of preprocessed values, which are about 1
constexpr int kNotAsRecorded = 3;

struct OutputCheck {
  std::string name;
  double snr_db;  // infinite where every value is the same
  bool passed;
};

struct SampleCheck {
  std::optional<double> picture_error;  // largest difference; none where the sample has no picture
  bool picture_passed = true;
  std::vector<OutputCheck> outputs;

  bool passed() const {
    return picture_passed &&
           std::all_of(outputs.begin(), outputs.end(), [](const OutputCheck& output) { return output.passed; });
  }
};

double largest_difference(const Tensor& recorded, const Tensor& found) {
  if (recorded.shape != found.shape || recorded.dtype != found.dtype) return std::numeric_limits<double>::infinity();
  const std::vector<double> a = as_doubles(recorded), b = as_doubles(found);
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::fabs(a[i] - b[i]);
    largest = difference <= largest ? largest : difference;  // NaN stays
  }
  return largest;
}

OutputCheck check_output(const TensorSpec& spec, const Tensor& recorded, const Tensor& found, double min_snr_db) {
  OutputCheck check{spec.name, -std::numeric_limits<double>::infinity(), false};
  if (recorded.shape == found.shape) check.snr_db = snr_db(as_doubles(recorded), as_doubles(found));
  check.passed = check.snr_db >= min_snr_db;
  return check;
}

// Return where each tensor that the manifest lists is among the model's: an engine may have them in another order.
std::vector<size_t> places(const Json& listed, const std::vector<TensorSpec>& specs) {
  std::vector<size_t> found;
  for (const Json& record : listed.array()) {
    const std::string& name = record.at("name").string();
    const auto spec =
        std::find_if(specs.begin(), specs.end(), [&](const TensorSpec& each) { return each.name == name; });
    if (spec == specs.end()) {
      throw Error("the model has no " + name + ", which the bundle lists",
                  "Build the engine of this bundle again, or pack the bundle again.");
    }
    found.push_back(static_cast<size_t>(spec - specs.begin()));
  }
  if (found.size() != specs.size()) {
    throw Error("the model has " + std::to_string(specs.size()) + " inputs or outputs where the bundle lists " +
                    std::to_string(found.size()),
                "Build the engine of this bundle again, or pack the bundle again.");
  }
  return found;
}

std::vector<SampleCheck> check_golden(const Bundle& bundle, Model& model) {
  const std::unique_ptr<Context> context = model.make_context();
  const std::vector<size_t> input_places = places(bundle.manifest().at("inputs"), model.inputs());
  const std::vector<size_t> output_places = places(bundle.manifest().at("outputs"), model.outputs());
  std::vector<SampleCheck> checks;
  std::vector<Tensor> outputs;
  for (const Golden& golden : bundle.golden()) {
    SampleCheck check;
    std::vector<Tensor> inputs(golden.inputs.size());
    for (size_t i = 0; i < inputs.size(); ++i) inputs[input_places[i]] = bundle.read_tensor(golden.inputs[i]);
    if (golden.image && !inputs.empty()) {
      const std::string where = bundle.path() + ": " + *golden.image;
      const auto fed = picture_feeds(where, bundle.read(*golden.image), preprocess_of(bundle), model.inputs());
      check.picture_error = largest_difference(inputs.front(), fed.front());
      check.picture_passed = *check.picture_error <= kPictureTolerance;
    }
    context->run(inputs, outputs);
    for (size_t i = 0; i < output_places.size(); ++i) {
      const size_t place = output_places[i];
      const Tensor recorded = bundle.read_tensor(golden.outputs[i]);
      check.outputs.push_back(
          check_output(model.outputs()[place], recorded, outputs[place], bundle.golden_min_snr_db()));
    }
    checks.push_back(check);
  }
  return checks;
}

// JSON has no infinity.
std::optional<double> finite(double value) {
  return std::isfinite(value) ? std::optional<double>(value) : std::nullopt;
}

std::string json_text(const Bundle& bundle, const std::string& runtime, const std::vector<SampleCheck>& checks,
                      bool passed) {
  std::vector<JsonObject> samples;
  for (const SampleCheck& check : checks) {
    std::vector<JsonObject> outputs;
    for (const OutputCheck& output : check.outputs) {
      outputs.push_back(JsonObject()
                            .add("name", output.name)
                            .add("snr_db", finite(output.snr_db))
                            .add("identical", output.snr_db > 0 && std::isinf(output.snr_db))
                            .add("passed", output.passed));
    }
    const std::optional<double> error = check.picture_error ? finite(*check.picture_error) : std::nullopt;
    samples.push_back(
        JsonObject().add("picture_error", error).add("picture_passed", check.picture_passed).add("outputs", outputs));
  }
  return JsonObject()
             .add("bundle", bundle.name())
             .add("files", static_cast<int64_t>(bundle.file_count()))
             .add("runtime", runtime)
             .add("min_snr_db", bundle.golden_min_snr_db())
             .add("golden", samples)
             .add("passed", passed)
             .text() +
         "\n";
}

std::string decibels(double snr_db) {
  char text[40];
  if (std::isinf(snr_db)) return snr_db > 0 ? "every value the same" : "nothing in common";
  std::snprintf(text, sizeof text, "%.1f dB", snr_db);
  return text;
}

std::string plain_text(const Bundle& bundle, const std::string& runtime, const std::vector<SampleCheck>& checks,
                       bool passed) {
  char limit[40];
  std::snprintf(limit, sizeof limit, "%.1f dB", bundle.golden_min_snr_db());
  std::string text = bundle.name() + ": " + std::to_string(bundle.file_count()) +
                     " files are those that were packed; " + runtime + "\n";
  for (size_t i = 0; i < checks.size(); ++i) {
    std::string line = "  golden sample " + std::to_string(i) + ":";
    if (checks[i].picture_error) {
      line += checks[i].picture_passed ? " picture prepared as recorded;" : " PICTURE PREPARED OTHERWISE;";
    }
    for (const OutputCheck& output : checks[i].outputs) {
      line += " " + output.name + " " + decibels(output.snr_db) +
              (output.passed ? ";" : " BELOW " + std::string(limit) + ";");
    }
    line.back() = '\n';
    text += line;
  }
  return text + (passed ? "passed: this device gives what was recorded, at " + std::string(limit) + " or better\n"
                        : "FAILED: this device does not give what was recorded\n");
}

void explain(const std::vector<SampleCheck>& checks) {
  const bool pictures =
      std::all_of(checks.begin(), checks.end(), [](const SampleCheck& check) { return check.picture_passed; });
  std::fputs(pictures
                 ? "hint: Build the engine again if there is one; else this runtime computes the model wrongly: "
                   "try another version, or --backend.\n"
                 : "hint: Pack the bundle with Pillow 13 or later: earlier ones round resized pictures otherwise.\n",
             stderr);
}

}  // namespace

int run_check(const Args& args) {
  const Bundle bundle(args.model);
  bundle.verify();
  if (bundle.golden().empty()) {
    throw Error(bundle.path() + " has no golden samples to compare with", "Pack it again: tlc pack adds them.");
  }
  const std::unique_ptr<Model> model = open_bundle(bundle, args);
  const std::vector<SampleCheck> checks = check_golden(bundle, *model);
  const bool passed =
      std::all_of(checks.begin(), checks.end(), [](const SampleCheck& check) { return check.passed(); });
  const auto text = args.json ? json_text : plain_text;
  std::fputs(text(bundle, model->runtime(), checks, passed).c_str(), stdout);
  if (!passed) explain(checks);
  return passed ? 0 : kNotAsRecorded;
}

}  // namespace tlc
