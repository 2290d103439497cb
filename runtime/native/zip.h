// Zip files whose members are stored without compression, as bundles and numpy.savez write them.
#ifndef TLC_NATIVE_ZIP_H_
#define TLC_NATIVE_ZIP_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace tlc {

struct ZipMember {
  std::string name;
  uint64_t offset;  // of its data in the file
  uint64_t size_bytes;
};

// APPNOTE.TXT 6.3.10, with zip64. Members are read from the disk when asked for.
class ZipFile {
 public:
  // Read the directory. Throws Error for a file that is not a zip, is cut short, or has a member that is compressed,
  // encrypted, twice there, outside of the file, or named so that it could leave a folder (absolute, "..", backslash).
  explicit ZipFile(const std::string& path);
  ~ZipFile();

  const std::vector<ZipMember>& members() const { return members_; }

  // Return the member; throws Error for an unknown name.
  const ZipMember& member(const std::string& name) const;

  // Return the bytes of a member; throws Error.
  std::string read(const ZipMember& member) const;

  // Give the bytes of a member to `take` piece by piece; throws Error.
  void stream(const ZipMember& member, const std::function<void(const char*, size_t)>& take) const;

 private:
  std::string path_;
  int file_ = -1;
  std::vector<ZipMember> members_;
};

}  // namespace tlc

#endif  // TLC_NATIVE_ZIP_H_
