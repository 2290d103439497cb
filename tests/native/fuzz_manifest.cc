// Any manifest makes a bundle that can be checked, or an Error. The members beside it are those that
// corpus/manifest/good.json lists.

#include <string>

#include "bundle.h"
#include "error.h"
#include "npy.h"
#include "tensor.h"
#include "zip_writer.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size_bytes) {
  static const std::string array = tlc::npy_bytes(tlc::make_tensor(tlc::DType::kFloat32, {1, 3}));
  const std::string manifest(data, data + size_bytes);
  const check::MemoryFile file(check::zip_bytes({{"manifest.json", manifest},
                                                 {"golden/0/input-0.npy", array},
                                                 {"golden/0/output-0.npy", array},
                                                 {"model.onnx", "model"}}));
  try {
    const tlc::Bundle bundle(file.path());
    bundle.read(bundle.model());
    for (const tlc::Golden& sample : bundle.golden()) {
      for (const std::string& member : sample.inputs) bundle.read_tensor(member);
    }
    bundle.verify();
  } catch (const tlc::Error&) {
  }
  return 0;
}
