// Any file is a zip whose members lie in it one after another, or an Error.

#include <cstdlib>
#include <string>

#include "error.h"
#include "zip.h"
#include "zip_writer.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size_bytes) {
  const check::MemoryFile file(data, size_bytes);
  try {
    const tlc::ZipFile zip(file.path());
    size_t total_bytes = 0;
    for (const tlc::ZipMember& member : zip.members()) {
      total_bytes += member.size_bytes;
      if (total_bytes > size_bytes || &zip.member(member.name) != &member) abort();
      try {
        zip.read(member);
      } catch (const tlc::Error&) {
      }
    }
  } catch (const tlc::Error&) {
  }
  return 0;
}
