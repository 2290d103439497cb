// Zip files whose members are stored without compression, as bundles and numpy.savez write them.
#ifndef TLC_NATIVE_ZIP_H_
#define TLC_NATIVE_ZIP_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace tlc {

class ZipInput;

struct ZipMember {
  std::string name;
  uint64_t offset;  // of its data in the file
  uint64_t size_bytes;
  uint32_t crc32;
};

// APPNOTE.TXT 6.3.10, with zip64. Members are read from the disk when asked for; several threads may do so at once.
class ZipFile {
 public:
  // Read the directory. Throws Error for a file that is not a zip, is cut short, holds anything but members and the
  // directory (a comment too), or has a member that is compressed, encrypted, twice there, outside of the file, over
  // another one, described in two ways, or named so that it could leave a folder (absolute, "..", backslash).
  explicit ZipFile(const std::string& path);
  ~ZipFile();

  const std::vector<ZipMember>& members() const { return members_; }

  // Return the member, or null for an unknown name.
  const ZipMember* find(const std::string& name) const;

  // Return the member; throws Error for an unknown name.
  const ZipMember& member(const std::string& name) const;

  // Return the bytes of a member; throws Error where they are not what its CRC-32 says.
  std::string read(const ZipMember& member) const;

  // Give the bytes of a member to `take` piece by piece; throws as read(), after the last piece.
  void stream(const ZipMember& member, const std::function<void(const char*, size_t)>& take) const;

 private:
  std::unique_ptr<ZipInput> input_;
  std::vector<ZipMember> members_;
  std::map<std::string, size_t> index_;  // of members_, by name
};

}  // namespace tlc

#endif  // TLC_NATIVE_ZIP_H_
