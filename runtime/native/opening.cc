#include "opening.h"

#include "error.h"

namespace tlc {

namespace {

bool ends_with(const std::string& text, const std::string& suffix) {
  return text.size() >= suffix.size() && text.compare(text.size() - suffix.size(), suffix.size(), suffix) == 0;
}

OpenOptions options_for(const Args& args, const std::string& runtime, int threads) {
  OpenOptions options;
  options.backend = args.backend.empty() ? runtime : args.backend;
  options.library = options.backend == "onnxruntime" ? args.ort_lib
                    : options.backend == "openvino"  ? args.openvino_lib
                                                     : "";
  options.threads = args.threads.value_or(threads);
  return options;
}

// NAME.plan beside NAME.tlc.
std::string plan_beside(const std::string& bundle) {
  const std::string suffix = ".tlc";
  return (ends_with(bundle, suffix) ? bundle.substr(0, bundle.size() - suffix.size()) : bundle) + ".plan";
}

std::string plan_of(const std::string& bundle, const OpenOptions& options, const Args& args) {
  if (options.backend != "tensorrt") return "";
  return args.plan.empty() ? plan_beside(bundle) : args.plan;
}

std::unique_ptr<Model> open(const Bundle& bundle, const std::string& plan, const OpenOptions& options) {
  return plan.empty() ? open_model_bytes(bundle.read(bundle.model()), options) : open_model(plan, options);
}

}  // namespace

Source find_source(const std::string& path, const Args& args) {
  Source source;
  source.path = path;
  if (ends_with(path, ".tlc")) {
    source.bundle = std::make_shared<const Bundle>(path);
    source.options = options_for(args, source.bundle->runtime(), source.bundle->threads());
    source.plan = plan_of(path, source.options, args);
    return source;
  }
  const bool onnx = ends_with(path, ".onnx");
  if (!onnx && !ends_with(path, ".plan") && !ends_with(path, ".engine")) {
    throw Error(path + " is neither a bundle nor an ONNX file nor an engine",
                "Give a file whose name ends in .tlc, .onnx, .plan or .engine.");
  }
  source.options = options_for(args, onnx ? "onnxruntime" : "tensorrt", 1);
  if (onnx == (source.options.backend == "tensorrt")) {
    throw Error(path + " cannot run in " + source.options.backend,
                onnx ? "Build an engine on the device: tlc-run build, or tlc build." : "Engines run in tensorrt.");
  }
  return source;
}

std::unique_ptr<Model> open_source(const Source& source) {
  return source.bundle ? open(*source.bundle, source.plan, source.options) : open_model(source.path, source.options);
}

std::unique_ptr<Model> open_bundle(const Bundle& bundle, const Args& args) {
  const OpenOptions options = options_for(args, bundle.runtime(), bundle.threads());
  return open(bundle, plan_of(bundle.path(), options, args), options);
}

}  // namespace tlc
