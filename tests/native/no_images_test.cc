// A tlc-run that was built without libjpeg and libpng says so; image.cc is compiled into this program without them.

#include <string>

#include "check.h"
#include "error.h"
#include "image.h"

namespace {

using check::message_of;

std::string refusal(const std::string& bytes) {
  return message_of<tlc::Error>([&] { tlc::read_image(bytes, 3); });
}

}  // namespace

int main() {
  CHECK(refusal("\xFF\xD8\xFF\xE0") == "this tlc-run was built without libjpeg and cannot read JPEG pictures");
  CHECK(refusal("\x89PNG\r\n\x1A\n") == "this tlc-run was built without libpng and cannot read PNG pictures");
  CHECK(refusal("GIF89a") == "neither a JPEG nor a PNG picture");
  return check::finish();
}
