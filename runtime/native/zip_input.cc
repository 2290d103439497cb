#include "zip_input.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "error.h"

namespace tlc {

ZipInput::ZipInput(const std::string& path)
    : path_(path), descriptor_(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {  // a pipe must not block
  struct stat status{};
  if (descriptor_ < 0 || fstat(descriptor_, &status) != 0) {
    throw Error("cannot read " + path + ": " + std::strerror(errno), "Check the path.");
  }
  if (!S_ISREG(status.st_mode)) {
    close(descriptor_);
    throw Error(path + " is not a file", "Check the path.");
  }
  size_bytes_ = static_cast<uint64_t>(status.st_size);
}

ZipInput::~ZipInput() { close(descriptor_); }

void ZipInput::fail(const std::string& problem) const {
  throw Error(path_ + ": " + problem, "Copy the file again; if that does not help, make it again.");
}

void ZipInput::read(uint64_t offset, void* bytes, size_t count) const {
  auto* to = static_cast<char*>(bytes);
  while (count > 0) {
    const ssize_t got = pread(descriptor_, to, count, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw Error("cannot read " + path_ + ": " + std::strerror(errno), "Check the disk.");
    if (got == 0) fail("cut short while it was read");
    to += got;
    offset += static_cast<uint64_t>(got);
    count -= static_cast<size_t>(got);
  }
}

std::string ZipInput::text(uint64_t offset, uint64_t count) const {
  if (offset > size_bytes_ || count > size_bytes_ - offset) fail("cut short, or not a zip file");
  std::string out(static_cast<size_t>(count), '\0');
  read(offset, &out[0], out.size());
  return out;
}

}  // namespace tlc
