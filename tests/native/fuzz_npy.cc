// Any bytes are an array, a list of names, or an Error.

#include <cstdlib>
#include <string>

#include "error.h"
#include "npy.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size_bytes) {
  const std::string bytes(data, data + size_bytes);
  try {
    const tlc::Tensor tensor = tlc::parse_npy(bytes);
    if (tlc::parse_npy(tlc::npy_bytes(tensor)).bytes != tensor.bytes) abort();
  } catch (const tlc::Error&) {
  }
  try {
    tlc::parse_npy_text(bytes);
  } catch (const tlc::Error&) {
  }
  try {
    tlc::parse_npy_header(bytes, uint64_t{1} << 40);
  } catch (const tlc::Error&) {
  }
  return 0;
}
