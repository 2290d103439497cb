#include "npy.h"

#include <algorithm>
#include <cstring>

#include "error.h"
#include "utf8.h"

namespace tlc {

namespace {

constexpr char kMagic[] = "\x93NUMPY";
constexpr size_t kMagicBytes = 6;
constexpr size_t kMaxTextLength = 1 << 20;  // of one name, in characters

[[noreturn]] void fail(const std::string& problem) {
  throw Error("not an array that can be read: " + problem,
              "Save it with numpy.save or numpy.savez as C-ordered floats, integers, bool or text.");
}

struct Descr {  // numpy's, such as "<f4"
  const char* text;
  DType dtype;
};

constexpr Descr kDescrs[] = {
    {"<f4", DType::kFloat32}, {"<f2", DType::kFloat16}, {"<f8", DType::kFloat64}, {"|u1", DType::kUint8},
    {"|i1", DType::kInt8},    {"<i4", DType::kInt32},   {"<i8", DType::kInt64},   {"|b1", DType::kBool},
};

// What the header says, with the type as numpy writes it.
struct RawHeader {
  std::string descr;
  bool fortran_order = true;
  Shape shape;
  size_t data_offset = 0;
};

// Parses the header's dictionary, of the few forms of Python literals that numpy writes.
class Literal {
 public:
  explicit Literal(const std::string& text) : text_(text) {}

  RawHeader parse() {
    RawHeader header;
    bool seen[3] = {};
    expect('{');
    while (!taken('}')) {
      const std::string key = string();
      const int field = key == "descr" ? 0 : key == "fortran_order" ? 1 : key == "shape" ? 2 : -1;
      if (field < 0 || seen[field]) fail("its header has the key '" + key + "' too much");
      seen[field] = true;
      expect(':');
      if (field == 0) header.descr = string();
      if (field == 1) header.fortran_order = boolean();
      if (field == 2) header.shape = shape();
      if (!taken(',')) {
        expect('}');
        break;
      }
    }
    if (!seen[0] || !seen[1] || !seen[2]) fail("its header lacks descr, fortran_order or shape");
    skip_spaces();
    if (at_ != text_.size()) fail("its header has more than a dictionary");
    return header;
  }

 private:
  void skip_spaces() { at_ = std::min(text_.find_first_not_of(" \t\r\n", at_), text_.size()); }

  bool taken(char character) {
    skip_spaces();
    if (at_ == text_.size() || text_[at_] != character) return false;
    ++at_;
    return true;
  }

  void expect(char character) {
    if (!taken(character)) {
      fail(std::string("its header has no ") + character + " at character " + std::to_string(at_));
    }
  }

  std::string string() {
    const char quote = taken('"') ? '"' : '\'';
    if (quote == '\'') expect(quote);
    const size_t end = text_.find(quote, at_);
    if (end == std::string::npos) fail("its header has text without end");
    const std::string out = text_.substr(at_, end - at_);
    if (out.find('\\') != std::string::npos) fail("its header has an escape");
    at_ = end + 1;
    return out;
  }

  bool boolean() {
    skip_spaces();
    for (const char* const name : {"True", "False"}) {
      if (text_.compare(at_, std::strlen(name), name) != 0) continue;
      at_ += std::strlen(name);
      return *name == 'T';
    }
    fail("its fortran_order is neither True nor False");
  }

  Shape shape() {
    Shape shape;
    expect('(');
    while (!taken(')')) {
      shape.push_back(dimension());
      if (!taken(',')) {
        expect(')');
        if (shape.size() == 1) fail("its shape is no tuple");
        break;
      }
    }
    return shape;
  }

  int64_t dimension() {
    skip_spaces();
    const size_t start = at_;
    int64_t value = 0;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      if (at_ - start == 18) fail("its shape has a dimension above 10^18");
      value = value * 10 + (text_[at_] - '0');
    }
    if (at_ == start) fail("its shape has something that is no number");
    return value;
  }

  const std::string& text_;
  size_t at_ = 0;
};

RawHeader parse_raw_header(const std::string& head) {
  if (head.size() < kMagicBytes + 4 || head.compare(0, kMagicBytes, kMagic) != 0) fail("no .npy file");
  const auto byte = [&head](size_t at) { return size_t{static_cast<unsigned char>(head[at])}; };
  const size_t version = byte(6);
  if (version < 1 || version > 3 || byte(7) != 0) {
    fail("version " + std::to_string(version) + "." + std::to_string(byte(7)) + " of the format");
  }
  const size_t start = version == 1 ? 10 : 12;
  if (head.size() < start) fail("cut short");
  const size_t bytes = byte(8) | byte(9) << 8 | (version == 1 ? 0 : byte(10) << 16 | byte(11) << 24);
  if (bytes > head.size() - start) fail("its header of " + std::to_string(bytes) + " bytes is cut short or too long");
  RawHeader header = Literal(head.substr(start, bytes)).parse();
  if (header.fortran_order) fail("Fortran order; numpy.ascontiguousarray makes it C order");
  header.data_offset = start + bytes;
  return header;
}

void check_size(const RawHeader& header, uint64_t values_bytes, uint64_t total_bytes) {
  if (header.data_offset > total_bytes || total_bytes - header.data_offset != values_bytes) {
    fail(shape_text(header.shape) + " values of " + header.descr + " take " + std::to_string(values_bytes) +
         " bytes, there are " + std::to_string(total_bytes - std::min<uint64_t>(header.data_offset, total_bytes)));
  }
}

uint32_t code_at(const std::string& bytes, size_t at) {
  uint32_t code = 0;
  std::memcpy(&code, bytes.data() + at, sizeof code);
  return code;
}

}  // namespace

NpyHeader parse_npy_header(const std::string& head, uint64_t total_bytes) {
  const RawHeader header = parse_raw_header(head);
  const auto* const found = std::find_if(std::begin(kDescrs), std::end(kDescrs),
                                         [&header](const Descr& descr) { return header.descr == descr.text; });
  if (found == std::end(kDescrs)) fail("values of type '" + header.descr + "'");
  check_size(header, element_count(header.shape, found->dtype) * size_bytes(found->dtype), total_bytes);
  return {found->dtype, header.shape, header.data_offset};
}

Tensor parse_npy(const std::string& bytes) {
  const NpyHeader header = parse_npy_header(bytes, bytes.size());
  Tensor tensor = make_tensor(header.dtype, header.shape);
  if (!tensor.bytes.empty()) {
    std::memcpy(tensor.bytes.data(), bytes.data() + header.data_offset, tensor.bytes.size());
  }
  if (header.dtype == DType::kBool) {
    const auto wrong =
        std::find_if(tensor.bytes.begin(), tensor.bytes.end(), [](unsigned char value) { return value > 1; });
    if (wrong != tensor.bytes.end()) fail("a bool that is " + std::to_string(*wrong));
  }
  return tensor;
}

std::vector<std::string> parse_npy_text(const std::string& bytes) {
  const RawHeader header = parse_raw_header(bytes);
  if (header.descr.size() < 3 || header.descr.size() > 9 || header.descr.compare(0, 2, "<U") != 0 ||
      header.descr.find_first_not_of("0123456789", 2) != std::string::npos) {
    fail("values of type '" + header.descr + "' where text is expected");
  }
  const size_t length = std::stoul(header.descr.substr(2));
  if (length > kMaxTextLength) fail("text of " + std::to_string(length) + " characters");
  if (header.shape.size() != 1) fail("text of shape " + shape_text(header.shape) + " where a list is expected");
  const size_t count = element_count(header.shape, DType::kInt32);
  if (length > 0 && count > bytes.size() / length) fail("cut short");
  check_size(header, uint64_t{4} * length * count, bytes.size());
  if (length == 0 && count > bytes.size()) fail("more texts than bytes");

  std::vector<std::string> texts(count);
  for (size_t i = 0; i < count; ++i) {
    size_t used = length;  // texts end where only NULs follow
    const size_t start = header.data_offset + 4 * length * i;
    while (used > 0 && code_at(bytes, start + 4 * (used - 1)) == 0) --used;
    for (size_t k = 0; k < used; ++k) {
      const uint32_t code = code_at(bytes, start + 4 * k);
      if (code >= 0x110000 || (code >= 0xD800 && code <= 0xDFFF)) fail("text that is not Unicode");
      append_utf8(texts[i], code);
    }
  }
  return texts;
}

std::string npy_bytes(const Tensor& tensor) {
  const auto* const found = std::find_if(std::begin(kDescrs), std::end(kDescrs),
                                         [&tensor](const Descr& descr) { return tensor.dtype == descr.dtype; });
  std::string shape;
  for (const int64_t dim : tensor.shape) shape += std::to_string(dim) + (tensor.shape.size() == 1 ? "," : ", ");
  if (tensor.shape.size() > 1) shape.resize(shape.size() - 2);
  std::string header =
      std::string("{'descr': '") + found->text + "', 'fortran_order': False, 'shape': (" + shape + "), }";
  // The values begin at a multiple of 64 bytes.
  constexpr size_t kStart = 10;
  header.append(63 - (kStart + header.size()) % 64, ' ');
  header += '\n';
  std::string out(kMagic, kMagicBytes);
  out += {'\x01', '\x00', static_cast<char>(header.size() & 0xFF), static_cast<char>(header.size() >> 8)};
  out += header;
  out.append(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
  return out;
}

}  // namespace tlc
