// tlc-run serve-once: what the model says of one picture, or of one prepared sample.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <numeric>

#include "backend.h"
#include "bundle.h"
#include "commands.h"
#include "json_object.h"
#include "opening.h"
#include "samples.h"
#include "values.h"

namespace tlc {

namespace {

using Clock = std::chrono::steady_clock;

double ms_between(Clock::time_point start, Clock::time_point end) {
  return std::chrono::duration<double, std::milli>(end - start).count();
}

std::vector<JsonObject> ranked(const std::vector<double>& shares, const Bundle& bundle, int top) {
  std::vector<size_t> order(shares.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return shares[a] > shares[b]; });
  order.resize(std::min(order.size(), static_cast<size_t>(top)));
  std::vector<JsonObject> rows;
  for (const size_t position : order) {
    rows.push_back(JsonObject()
                       .add("class", static_cast<int64_t>(position))
                       .add("name", class_name(bundle.classes(), position))
                       .add("probability", shares[position]));
  }
  return rows;
}

}  // namespace

int run_serve_once(const Args& args) {
  const Bundle bundle(args.model);
  const auto start = Clock::now();
  const std::unique_ptr<Model> model = open_bundle(bundle, args);
  const std::unique_ptr<Context> context = model->make_context();
  const auto loaded = Clock::now();
  const std::vector<Tensor> feeds = feeds_of_file(args.input, bundle, model->inputs());
  const auto fed = Clock::now();
  std::vector<Tensor> outputs;
  context->run(feeds, outputs);
  const auto done = Clock::now();
  const std::vector<double> shares =
      probabilities(class_scores(outputs, bundle.classes().size(), batch_of(model->inputs())));
  const std::string text = JsonObject()
                               .add("bundle", bundle.name())
                               .add("input", args.input)
                               .add("runtime", model->runtime())
                               .add("predictions", ranked(shares, bundle, args.top))
                               .add("load_ms", ms_between(start, loaded))
                               .add("input_ms", ms_between(loaded, fed))
                               .add("run_ms", ms_between(fed, done))
                               .text();
  std::printf("%s\n", text.c_str());
  return 0;
}

}  // namespace tlc
