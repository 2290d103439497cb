// Run a model in one runtime on inputs from files, for tests in Python that compare the outputs:
//
//   backend_probe BACKEND LIBRARY path|bytes MODEL CONTEXTS FOLDER...
//
// Each FOLDER holds 0.npy, 1.npy ... in the order of the model's inputs, and gets out0.npy, out1.npy ... All folders
// are run one after the other in each of CONTEXTS contexts, in threads at once; the outputs have to be the same in all.
// Prints one JSON object: the runtime, the inputs and the outputs.
#include <cstdio>
#include <thread>
#include <vector>

#include "backend.h"
#include "error.h"
#include "files.h"
#include "json_object.h"
#include "npy.h"

namespace {

using Runs = std::vector<std::vector<tlc::Tensor>>;

std::string specs_json(const std::vector<tlc::TensorSpec>& specs) {
  std::vector<tlc::JsonObject> list;
  for (const tlc::TensorSpec& spec : specs) {
    list.push_back(
        tlc::JsonObject().add("name", spec.name).add("dtype", tlc::name_of(spec.dtype)).add("shape", spec.shape));
  }
  return tlc::json_value(list);
}

Runs run_all(tlc::Context& context, const Runs& feeds) {
  Runs outputs;
  for (const std::vector<tlc::Tensor>& feed : feeds) {
    outputs.emplace_back();
    context.run(feed, outputs.back());
    context.run(feed, outputs.back());  // again, into the same buffers and from the same inputs
  }
  return outputs;
}

bool equal(const Runs& a, const Runs& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    for (size_t j = 0; j < a[i].size(); ++j) {
      if (a[i][j].bytes != b[i][j].bytes || a[i][j].shape != b[i][j].shape) return false;
    }
  }
  return true;
}

int probe(const std::vector<std::string>& args) {
  tlc::OpenOptions options;
  options.backend = args.at(0);
  options.library = args.at(1);
  const auto model = args.at(2) == "bytes" ? tlc::open_model_bytes(tlc::read_file(args.at(3)), options)
                                           : tlc::open_model(args.at(3), options);
  const auto count = static_cast<size_t>(std::stoi(args.at(4)));
  Runs feeds;
  for (size_t i = 5; i < args.size(); ++i) {
    feeds.emplace_back();
    for (size_t j = 0; j < model->inputs().size(); ++j) {
      feeds.back().push_back(tlc::parse_npy(tlc::read_file(args[i] + "/" + std::to_string(j) + ".npy")));
    }
  }
  std::vector<std::unique_ptr<tlc::Context>> contexts;
  for (size_t i = 0; i < count; ++i) contexts.push_back(model->make_context());
  std::vector<Runs> outputs(count);
  std::vector<std::string> errors(count);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < count; ++i) {
    threads.emplace_back([&, i] {
      try {
        outputs[i] = run_all(*contexts[i], feeds);
      } catch (const tlc::Error& error) {
        errors[i] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < count; ++i) {
    if (!errors[i].empty()) throw tlc::Error(errors[i], "");
    if (!equal(outputs[i], outputs[0])) throw tlc::Error("contexts differ", "");
  }
  for (size_t i = 0; i < feeds.size(); ++i) {
    for (size_t j = 0; j < outputs[0][i].size(); ++j) {
      tlc::replace_file(args[i + 5] + "/out" + std::to_string(j) + ".npy", tlc::npy_bytes(outputs[0][i][j]));
    }
  }
  std::printf("%s\n", tlc::JsonObject()
                          .add("runtime", model->runtime())
                          .add_json("inputs", specs_json(model->inputs()))
                          .add_json("outputs", specs_json(model->outputs()))
                          .text()
                          .c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return probe(std::vector<std::string>(argv + 1, argv + argc));
  } catch (const tlc::Error& error) {
    std::fprintf(stderr, "error: %s\nhint: %s\n", error.what(), error.hint.c_str());
    return 1;
  }
}
