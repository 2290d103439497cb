// Any bytes are a picture of the size that it says, or an Error.

#include <cstdlib>
#include <string>

#include "error.h"
#include "image.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size_bytes) {
  const std::string bytes(data, data + size_bytes);
  for (const int channels : {1, 3}) {
    try {
      const tlc::Image image = tlc::read_image(bytes, channels);
      const size_t values =
          static_cast<size_t>(image.width) * static_cast<size_t>(image.height) * static_cast<size_t>(channels);
      if (image.channels != channels || image.pixels.size() != values) abort();
    } catch (const tlc::Error&) {
    }
  }
  return 0;
}
