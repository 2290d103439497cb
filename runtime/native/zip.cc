#include "zip.h"

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "crc32.h"
#include "error.h"
#include "zip_input.h"

namespace tlc {

namespace {

// Sizes and signatures of APPNOTE.TXT: 4.3.7 local header, 4.3.9 data descriptor, 4.3.12 entry of the directory,
// 4.3.14 zip64 end, 4.3.15 its locator, 4.3.16 end.
constexpr uint32_t kLocalSignature = 0x04034b50;
constexpr size_t kLocalBytes = 30;
constexpr uint32_t kEntrySignature = 0x02014b50;
constexpr size_t kEntryBytes = 46;
constexpr uint32_t kEnd64Signature = 0x06064b50;
constexpr size_t kEnd64Bytes = 56;
constexpr uint32_t kLocatorSignature = 0x07064b50;
constexpr size_t kLocatorBytes = 20;
constexpr size_t kTail64Bytes = kEnd64Bytes + kLocatorBytes;
constexpr uint32_t kEndSignature = 0x06054b50;
constexpr size_t kEndBytes = 22;

constexpr uint16_t kZip64Extra = 1;        // 4.5.3
constexpr uint32_t kIn64 = 0xFFFFFFFF;     // a number that stands in the zip64 extra field
constexpr uint16_t kIn64Short = 0xFFFF;    // likewise
constexpr uint16_t kDescriptorFlag = 8;    // bit 3: sizes and CRC follow the data
constexpr uint16_t kKnownFlags = 0x080E;   // that, UTF-8 names, and two that only concern compressed data
constexpr int kMaxVersion = 63;            // 4.4.3.2: ten times the newest version that a member can need
constexpr uint64_t kDescriptorBytes = 24;  // with signature and numbers of 64 bits
constexpr size_t kPieceBytes = size_t{1} << 16;

// Reads little-endian numbers from front to back of what is known to be long enough.
class Fields {
 public:
  explicit Fields(const char* bytes) : at_(reinterpret_cast<const unsigned char*>(bytes)) {}

  uint16_t u16() { return static_cast<uint16_t>(number(2)); }
  uint32_t u32() { return static_cast<uint32_t>(number(4)); }
  uint64_t u64() { return number(8); }
  void skip(size_t bytes) { at_ += bytes; }

 private:
  uint64_t number(int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; ++i) value |= uint64_t{*at_++} << (8 * i);
    return value;
  }

  const unsigned char* at_;
};

// Return whether a file of that name would lie below the folder that it is put into.
bool stays_below(const std::string& name) {
  if (name.find('\\') != std::string::npos || name.find('\0') != std::string::npos) return false;
  for (size_t start = 0; start <= name.size();) {
    const size_t end = std::min(name.find('/', start), name.size());
    const std::string part = name.substr(start, end - start);
    if (part.empty() || part == "." || part == "..") return false;
    start = end + 1;
  }
  return true;
}

struct Entry {  // of the directory
  std::string name;
  uint16_t flags;
  uint32_t crc32;
  uint64_t stored_bytes;
  uint64_t size_bytes;
  uint64_t header_offset;
};

struct Directory {
  uint64_t entries;
  uint64_t size_bytes;
  uint64_t offset;
};

// Set those of `numbers` that are 0xFFFFFFFF, in their order, from the zip64 field of `extra`; return whether it has
// them all.
bool take_zip64(const std::string& extra, std::initializer_list<uint64_t*> numbers) {
  std::string field;
  for (size_t at = 0; extra.size() - at >= 4;) {
    Fields header(extra.data() + at);
    const uint16_t id = header.u16();
    const size_t bytes = header.u16();
    at += 4;
    if (bytes > extra.size() - at) return false;
    if (id == kZip64Extra && !field.empty()) return false;  // which of two counts would be the reader's choice
    if (id == kZip64Extra) field = extra.substr(at, bytes);
    at += bytes;
  }
  size_t used = 0;
  for (uint64_t* const number : numbers) {
    if (*number != kIn64) continue;
    if (field.size() - used < 8) return false;
    *number = Fields(field.data() + used).u64();
    used += 8;
  }
  return true;
}

Directory read_end(const ZipInput& input) {
  if (input.size_bytes() < kEndBytes) input.fail("cut short, or not a zip file");
  uint64_t end = input.size_bytes() - kEndBytes;  // of the directory
  const std::string bytes = input.text(end, kEndBytes);
  Fields fields(bytes.data());
  if (fields.u32() != kEndSignature) input.fail("cut short, or not a zip file, or one with a comment");
  const bool in_parts = fields.u32() != 0;  // two numbers of parts
  const uint16_t entries_of_part = fields.u16();
  Directory directory{};
  directory.entries = fields.u16();
  directory.size_bytes = fields.u32();
  directory.offset = fields.u32();
  const bool commented = fields.u16() != 0;
  if (in_parts || entries_of_part != directory.entries || commented) input.fail("in several parts, or with a comment");
  const bool needs_64 = directory.entries == kIn64Short || directory.size_bytes == kIn64 || directory.offset == kIn64;
  const std::string bytes64 = end < kTail64Bytes ? "" : input.text(end - kTail64Bytes, kTail64Bytes);
  if (!bytes64.empty() && Fields(bytes64.data() + kEnd64Bytes).u32() == kLocatorSignature) {
    end -= kTail64Bytes;
    Fields end64(bytes64.data());
    bool good = end64.u32() == kEnd64Signature;
    good &= end64.u64() == kEnd64Bytes - 12;  // what follows this number
    end64.skip(4);                            // versions
    good &= end64.u64() == 0;                 // two numbers of parts
    const Directory in_32 = directory;
    const uint64_t entries64_of_part = end64.u64();
    directory.entries = end64.u64();
    directory.size_bytes = end64.u64();
    directory.offset = end64.u64();
    good &= entries64_of_part == directory.entries;
    good &= in_32.entries == kIn64Short || in_32.entries == directory.entries;
    good &= in_32.size_bytes == kIn64 || in_32.size_bytes == directory.size_bytes;
    good &= in_32.offset == kIn64 || in_32.offset == directory.offset;
    end64.skip(4);             // the locator's signature
    good &= end64.u32() == 0;  // number of the part
    good &= end64.u64() == end;
    good &= end64.u32() == 1;  // parts
    if (!good) input.fail("its zip64 directory is broken");
  } else if (needs_64) {
    input.fail("its zip64 directory is missing");
  }
  if (directory.offset > end || directory.size_bytes != end - directory.offset) {
    input.fail("cut short, or with other bytes before or after it");
  }
  return directory;
}

std::vector<Entry> read_entries(const ZipInput& input, const Directory& directory) {
  const std::string bytes = input.text(directory.offset, directory.size_bytes);
  std::vector<Entry> entries;
  for (size_t at = 0; at < bytes.size();) {
    if (bytes.size() - at < kEntryBytes) input.fail("its directory is broken");
    Fields fields(bytes.data() + at);
    at += kEntryBytes;
    Entry entry{};
    bool good = fields.u32() == kEntrySignature;
    fields.skip(2);  // version that wrote it
    const bool known_version = (fields.u16() & 0xFF) <= kMaxVersion;
    entry.flags = fields.u16();
    const uint16_t method = fields.u16();
    fields.skip(4);  // time and date
    entry.crc32 = fields.u32();
    entry.stored_bytes = fields.u32();
    entry.size_bytes = fields.u32();
    const size_t name_bytes = fields.u16();
    const size_t extra_bytes = fields.u16();
    const size_t comment_bytes = fields.u16();
    good &= fields.u16() == 0;  // number of the part
    fields.skip(6);             // attributes
    entry.header_offset = fields.u32();
    if (!good || name_bytes + extra_bytes + comment_bytes > bytes.size() - at) input.fail("its directory is broken");
    entry.name = bytes.substr(at, name_bytes);
    const std::string extra = bytes.substr(at + name_bytes, extra_bytes);
    at += name_bytes + extra_bytes + comment_bytes;

    const std::string member = "member '" + entry.name + "' ";
    if (!take_zip64(extra, {&entry.size_bytes, &entry.stored_bytes, &entry.header_offset})) {
      input.fail(member + "has a broken zip64 field");
    }
    if (!stays_below(entry.name)) input.fail(member + "has a name that could leave a folder");
    if (!known_version || (entry.flags & ~kKnownFlags) != 0)
      input.fail(member + "is encrypted, or stored in an unknown way");
    if (method != 0 || entry.stored_bytes != entry.size_bytes) {
      throw Error(input.path() + ": " + member + "is compressed",
                  "Store members as they are: numpy.savez, not numpy.savez_compressed; tlc pack for bundles.");
    }
    entries.push_back(std::move(entry));
  }
  if (entries.size() != directory.entries) {
    input.fail("its directory has " + std::to_string(entries.size()) + " members, and " +
               std::to_string(directory.entries) + " were announced");
  }
  return entries;
}

// Return where the data of the member begin; throws Error unless its local header says what the directory says.
uint64_t data_offset(const ZipInput& input, const Entry& entry) {
  const std::string bytes = input.text(entry.header_offset, kLocalBytes);
  Fields fields(bytes.data());
  bool good = fields.u32() == kLocalSignature;
  fields.skip(2);  // version
  good &= fields.u16() == entry.flags;
  good &= fields.u16() == 0;  // method
  fields.skip(4);             // time and date
  const uint32_t crc32 = fields.u32();
  uint64_t stored_bytes = fields.u32();
  uint64_t member_bytes = fields.u32();
  const size_t name_bytes = fields.u16();
  const size_t extra_bytes = fields.u16();
  const std::string names = input.text(entry.header_offset + kLocalBytes, name_bytes + extra_bytes);
  good &= take_zip64(names.substr(name_bytes), {&member_bytes, &stored_bytes});
  good &= names.compare(0, name_bytes, entry.name) == 0;
  if ((entry.flags & kDescriptorFlag) == 0) {
    good &= crc32 == entry.crc32 && stored_bytes == entry.size_bytes && member_bytes == entry.size_bytes;
  }
  if (!good) input.fail("member '" + entry.name + "' is not what the directory says");
  return entry.header_offset + kLocalBytes + name_bytes + extra_bytes;
}

}  // namespace

ZipFile::ZipFile(const std::string& path) : input_(std::make_unique<ZipInput>(path)) {
  const Directory directory = read_end(*input_);
  std::vector<Entry> entries = read_entries(*input_, directory);
  for (const Entry& entry : entries) {
    if (!index_.emplace(entry.name, members_.size()).second) input_->fail("member '" + entry.name + "' is there twice");
    members_.push_back({entry.name, data_offset(*input_, entry), entry.size_bytes, entry.crc32});
  }

  // Members follow each other: what lies between two of them could be read by one program and not by another.
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.header_offset < b.header_offset; });
  uint64_t free_from = 0;
  uint64_t free_bytes = 0;  // that a data descriptor may take
  for (size_t i = 0; i <= entries.size(); ++i) {
    const uint64_t next = i < entries.size() ? entries[i].header_offset : directory.offset;
    const std::string where = i < entries.size() ? "member '" + entries[i].name + "'" : "the directory";
    if (next < free_from) input_->fail(where + " lies over another member");
    if (next - free_from > free_bytes) input_->fail("other bytes before " + where);
    if (i == entries.size()) break;
    const ZipMember& member = members_[index_.at(entries[i].name)];
    if (member.offset > directory.offset || member.size_bytes > directory.offset - member.offset) {
      input_->fail(where + " reaches over the directory");
    }
    free_from = member.offset + member.size_bytes;
    free_bytes = (entries[i].flags & kDescriptorFlag) != 0 ? kDescriptorBytes : 0;
  }
}

ZipFile::~ZipFile() = default;

const ZipMember* ZipFile::find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &members_[found->second];
}

const ZipMember& ZipFile::member(const std::string& name) const {
  const ZipMember* const found = find(name);
  if (found == nullptr) input_->fail("has no member '" + name + "'");
  return *found;
}

void ZipFile::stream(const ZipMember& member, const std::function<void(const char*, size_t)>& take) const {
  std::vector<char> piece(static_cast<size_t>(std::min<uint64_t>(kPieceBytes, member.size_bytes)));
  Crc32 crc;
  for (uint64_t done = 0; done < member.size_bytes;) {
    const auto count = static_cast<size_t>(std::min<uint64_t>(kPieceBytes, member.size_bytes - done));
    input_->read(member.offset + done, piece.data(), count);
    crc.update(piece.data(), count);
    take(piece.data(), count);
    done += count;
  }
  if (crc.value() != member.crc32) input_->fail("the bytes of member '" + member.name + "' are damaged (CRC-32)");
}

std::string ZipFile::read(const ZipMember& member) const {
  std::string bytes;
  bytes.reserve(static_cast<size_t>(member.size_bytes));
  stream(member, [&bytes](const char* piece, size_t count) { bytes.append(piece, count); });
  return bytes;
}

}  // namespace tlc
