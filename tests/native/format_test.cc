// Tests of what reads files: JSON, SHA-256, zip, .npy and bundles. test_formats.py holds them against Python's readers.

#include <clocale>
#include <cstring>
#include <string>
#include <vector>

#include "bundle.h"
#include "check.h"
#include "error.h"
#include "json.h"
#include "npy.h"
#include "sha256.h"
#include "tensor.h"
#include "zip.h"
#include "zip_writer.h"

namespace {

using check::contains;
using check::Members;
using check::message_of;
using tlc::Json;

std::string error_of(const std::string& json) {
  return message_of<tlc::Error>([&] { Json::parse(json); });
}

void json_is_read() {
  const Json json =
      Json::parse(R"( {"a": [1, -0.5e1, true, null, "x\u00e9\ud83d\ude00\n"], "b": {"c": 9007199254740992}} )");
  CHECK(json.object().size() == 2 && json.object()[0].first == "a");
  const auto& array = json.at("a").array();
  CHECK(array.size() == 5);
  CHECK(array[0].integer() == 1 && array[1].number() == -5 && array[2].boolean() && array[3].is_null());
  CHECK(array[4].string() == "x\xC3\xA9\xF0\x9F\x98\x80\n");
  CHECK(json.at("b").at("c").integer() == int64_t{1} << 53);
  CHECK(json.find("c") == nullptr);
  CHECK(Json::parse(R"({"a": null})").find("a") == nullptr);
  CHECK(Json::parse("0.1").number() == 0.1 && Json::parse("1e-400").number() == 0);
  CHECK(Json::parse("\"\\u0000\"").string() == std::string(1, '\0'));
}

void a_wrong_value_is_named_with_its_place() {
  const Json json = Json::parse(R"({"golden": {"samples": [{"image": 3}]}, "version": 1.5})");
  const Json& sample = json.at("golden").at("samples").array()[0];
  CHECK(message_of<tlc::Error>([&] { sample.at("image").string(); }) ==
        "golden.samples[0].image must be a string, not a number");
  CHECK(message_of<tlc::Error>([&] { sample.at("inputs"); }) == "golden.samples[0].inputs is missing");
  CHECK(message_of<tlc::Error>([&] { json.at("version").integer(); }) ==
        "version must be a whole number within 2^53, not 1.5");
  CHECK(message_of<tlc::Error>([&] { Json::parse("1e300").integer(); }) ==
        "the JSON must be a whole number within 2^53, not 1e+300");
  CHECK(message_of<tlc::Error>([] { Json::parse("[]").at("a"); }) == "the JSON must be an object, not an array");
  CHECK(message_of<tlc::Error>([] { Json::parse("[[]]").array()[0].boolean(); }) ==
        "[0] must be a boolean, not an array");
  const std::string key(1000, 'k');
  const Json deep = Json::parse("{\"" + key + "\": {\"end\": 1}}");
  const std::string message = message_of<tlc::Error>([&] { deep.at(key).at("end").string(); });
  CHECK(message.size() < 200 && contains(message, "kkk.end must be a string"));
}

void broken_json_is_refused_with_its_place() {
  CHECK(error_of("") == "not JSON: no value at line 1, column 1");
  CHECK(error_of("{\n \"a\": nul\n}") == "not JSON: no value at line 2, column 7");
  CHECK(error_of("[1 2]") == "not JSON: neither , nor ] at line 1, column 4");
  CHECK(error_of("[1,]") == "not JSON: no value at line 1, column 4");
  CHECK(error_of("{\"a\" 1}") == "not JSON: no : at line 1, column 6");
  CHECK(error_of("{a: 1}") == "not JSON: no key at line 1, column 2");
  CHECK(error_of("{\"a\": 1, \"b\": 2, \"a\": 3}") ==
        "not JSON: the key \"a\" twice in the object that ends at line 1, column 25");
  CHECK(error_of("1 1") == "not JSON: text after the value at line 1, column 3");
  for (const char* const text : {"01", "1.", ".5", "+1", "-", "1e", "NaN", "Infinity", "[", "{\"a\":", "'a'",
                                 "\xEF\xBB\xBF"
                                 "1"}) {
    CHECK(contains(error_of(text), "not JSON: "));
  }
  CHECK(contains(error_of("1e999"), "too large for a double"));
  CHECK(contains(error_of("\"a"), "a string without end"));
  CHECK(contains(error_of("\"a\nb\""), "a control character in a string"));
  CHECK(contains(error_of("\"\\x41\""), "an unknown escape"));
  CHECK(contains(error_of("\"\\u12G4\""), "no hexadecimal digit"));
  CHECK(contains(error_of("\"\\ud800\""), "half of a surrogate pair"));
  CHECK(contains(error_of("\"\\udc00\""), "half of a surrogate pair"));
  CHECK(contains(error_of("\"\xC0\xAF\""), "bytes that are not UTF-8"));
  CHECK(contains(error_of(std::string("[1,\0]", 5)), "no value"));
  CHECK(error_of(std::string(100, '[') + std::string(100, ']')).empty());
  CHECK(contains(error_of(std::string(101, '[') + std::string(101, ']')), "more than 100 levels"));
  std::string many = "[0";
  for (int i = 0; i < 1000000; ++i) many += ",0";
  CHECK(contains(error_of(many + "]"), "more than 1000000 values"));
}

void numbers_have_a_point_in_every_language() {
  bool found = false;
  for (const char* const name : {"de_DE.UTF-8", "fr_FR.UTF-8", "de_DE.utf8"})
    found |= std::setlocale(LC_ALL, name) != nullptr;
  if (!found) std::printf("SKIPPED: numbers_have_a_point_in_every_language: no German or French locale is installed\n");
  CHECK(Json::parse("0.5").number() == 0.5);
  CHECK(tlc::json_number(0.5) == "0.5");
  std::setlocale(LC_ALL, "C");
}

void sha256_is_that_of_the_standard() {
  // FIPS 180-2, appendix B, and the empty text.
  CHECK(tlc::sha256_hex("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(tlc::sha256_hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(tlc::sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  tlc::Sha256 million;
  for (int i = 0; i < 1000; ++i) million.update(std::string(1000, 'a').data(), 1000);
  CHECK(million.hex() == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

void tensors_have_bounded_sizes() {
  CHECK(tlc::element_count({2, 3, 0}, tlc::DType::kFloat32) == 0);
  CHECK(tlc::element_count({}, tlc::DType::kFloat32) == 1);
  CHECK(tlc::element_count({1 << 30}, tlc::DType::kFloat32) == size_t{1} << 30);
  CHECK(message_of<tlc::Error>([] { tlc::element_count({(1 << 30) + 1}, tlc::DType::kFloat32); }) ==
        "a tensor of float32 and shape 1073741825 is larger than 4 GiB");
  CHECK(contains(
      message_of<tlc::Error>([] { tlc::make_tensor(tlc::DType::kUint8, {int64_t{1} << 62, int64_t{1} << 62}); }),
      "larger than 4 GiB"));
  CHECK(message_of<tlc::Error>([] { tlc::make_tensor(tlc::DType::kInt8, {1, -1}); }) ==
        "shape 1x? has an open dimension");
  CHECK(tlc::dtype_of("float16") == tlc::DType::kFloat16 && std::strcmp(tlc::name_of(tlc::DType::kBool), "bool") == 0);
  CHECK(message_of<tlc::Error>([] { tlc::dtype_of("complex64"); }) == "element type 'complex64' is not supported");
}

std::string npy(const std::string& header, const std::string& values, int version = 1) {
  return std::string("\x93NUMPY") + static_cast<char>(version) + '\0' +
         check::little_endian(header.size(), version == 1 ? 2 : 4) + header + values;
}

std::string npy_error(const std::string& bytes) {
  return message_of<tlc::Error>([&] { tlc::parse_npy(bytes); });
}

void arrays_are_read_and_written() {
  tlc::Tensor tensor = tlc::make_tensor(tlc::DType::kInt32, {2, 1});
  tensor.data<int32_t>()[1] = -7;
  const tlc::Tensor back = tlc::parse_npy(tlc::npy_bytes(tensor));
  CHECK(back.dtype == tensor.dtype && back.shape == tensor.shape && back.bytes == tensor.bytes);
  CHECK(tlc::parse_npy_header(tlc::npy_bytes(tensor), tlc::npy_bytes(tensor).size()).data_offset % 64 == 0);
  for (const int version : {1, 2, 3}) {
    const std::string bytes = npy("{\"shape\": (3,), 'fortran_order':False,'descr':'|u1'}", "abc", version);
    CHECK(tlc::parse_npy(bytes).data<char>()[2] == 'c');
  }
}

void broken_arrays_are_refused() {
  const std::string good = "{'descr': '|u1', 'fortran_order': False, 'shape': (3,), }";
  CHECK(npy_error(npy(good, "abc")).empty());
  CHECK(npy_error(npy(good, "ab")) == "not an array that can be read: 3 values of |u1 take 3 bytes, there are 2");
  CHECK(contains(npy_error(npy(good, "abcd")), "there are 4"));
  CHECK(contains(npy_error("\x93NUMPX\x01"), "no .npy file"));
  CHECK(contains(npy_error(npy(good, "abc", 4)), "version 4.0"));
  CHECK(contains(npy_error(npy(good, "abc").substr(0, 30)), "cut short or too long"));
  const auto header = [](const std::string& text) { return npy_error(npy(text, "")); };
  CHECK(contains(header("{'descr': '>f4', 'fortran_order': False, 'shape': (0,)}"), "values of type '>f4'"));
  CHECK(contains(header("{'descr': '|O', 'fortran_order': False, 'shape': (0,)}"), "values of type '|O'"));
  CHECK(contains(header("{'descr': '<f4', 'fortran_order': True, 'shape': (0, 1)}"), "Fortran order"));
  CHECK(contains(header("{'descr': '<f4', 'fortran_order': False}"), "lacks"));
  CHECK(contains(header("{'descr': '<f4', 'descr': '<f4'}"), "the key 'descr' too much"));
  CHECK(contains(header("{'descr': '<f4', 'fortran_order': False, 'shape': (3)}"), "no tuple"));
  CHECK(contains(header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"), "no number"));
  CHECK(contains(header("{'descr': '<f4', 'fortran_order': False, 'shape': (4000000000, 4000000000)}"), "4 GiB"));
  CHECK(contains(header("{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999999999,)}"), "10^18"));
  CHECK(contains(header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (0,)}"), "no '"));
  CHECK(contains(header("{'descr': '<f4', 'fortran_order': False, 'shape': (0,)} x"), "more than a dictionary"));
  CHECK(
      contains(npy_error(npy("{'descr': '|b1', 'fortran_order': False, 'shape': (1,)}", "\x02")), "a bool that is 2"));
}

void names_are_read() {
  const auto text = [](const std::string& shape, const std::string& values, const char* descr = "<U2") {
    return npy(std::string("{'descr': '") + descr + "', 'fortran_order': False, 'shape': " + shape + "}", values);
  };
  const auto code = [](uint32_t value) { return check::little_endian(value, 4); };
  const auto names = tlc::parse_npy_text(text("(2,)", code('a') + code(0) + code(0x1F600) + code(0xE9)));
  CHECK((names == std::vector<std::string>{"a", "\xF0\x9F\x98\x80\xC3\xA9"}));
  const auto error = [](const std::string& bytes) {
    return message_of<tlc::Error>([&] { tlc::parse_npy_text(bytes); });
  };
  CHECK(contains(error(text("(1,)", code(0x110000) + code(0))), "text that is not Unicode"));
  CHECK(contains(error(text("(1,)", code(0xD800) + code(0))), "text that is not Unicode"));
  CHECK(contains(error(text("(1, 1)", code(0) + code(0))), "shape 1x1 where a list is expected"));
  CHECK(contains(error(text("(2,)", code(0) + code(0))), "take 16 bytes, there are 8"));
  CHECK(contains(error(text("(1000000000,)", "")), "cut short"));
  CHECK(contains(error(text("(1000000000,)", "", "<U0")), "more texts than bytes"));
  CHECK(contains(error(text("(1,)", "", "<U9999999")), "text of 9999999 characters"));
  CHECK(contains(error(text("(1,)", "a", "|S1")), "'|S1' where text is expected"));
}

std::string zip_error(const std::string& bytes) {
  const check::MemoryFile file(bytes);
  return message_of<tlc::Error>([&] { tlc::ZipFile zip(file.path()); });
}

std::string replaced(std::string text, const std::string& from, const std::string& to, size_t skip = 0) {
  size_t at = text.find(from);
  while (skip-- > 0) at = text.find(from, at + 1);
  return text.replace(at, from.size(), to);
}

void zips_are_read() {
  const check::MemoryFile file(check::zip_bytes({{"a/b.npy", "hello"}, {"c", ""}}));
  const tlc::ZipFile zip(file.path());
  CHECK(zip.members().size() == 2 && zip.members()[1].name == "c");
  CHECK(zip.read(zip.member("a/b.npy")) == "hello" && zip.read(zip.member("c")).empty());
  CHECK(zip.find("d") == nullptr);
  CHECK(contains(message_of<tlc::Error>([&] { zip.member("d"); }), "has no member 'd'"));
  CHECK(zip_error(check::zip_bytes({})).empty());
  CHECK(message_of<tlc::Error>([] { tlc::ZipFile zip("/nowhere.zip"); }) ==
        "cannot read /nowhere.zip: No such file or directory");
  CHECK(message_of<tlc::Error>([] { tlc::ZipFile zip("/"); }) == "/ is not a file");
}

void a_damaged_member_is_noticed() {
  const check::MemoryFile file(replaced(check::zip_bytes({{"a", "hello"}}), "hello", "hellp"));
  const tlc::ZipFile zip(file.path());
  CHECK(contains(message_of<tlc::Error>([&] { zip.read(zip.member("a")); }), "member 'a' are damaged (CRC-32)"));
}

void hostile_zips_are_refused() {
  const std::string good = check::zip_bytes({{"a", "hello"}, {"b", "world"}});
  CHECK(zip_error(good).empty());
  for (size_t length = 0; length < good.size(); ++length) CHECK(!zip_error(good.substr(0, length)).empty());
  CHECK(contains(zip_error("x" + good), "other bytes before or after"));
  CHECK(contains(zip_error(good + "x"), "not a zip file, or one with a comment"));
  for (const char* const name : {"../a", "/a", "a/../b", "a//b", "a/", ".", "a\\b", ""}) {
    CHECK(contains(zip_error(check::zip_bytes({{name, "x"}})), "a name that could leave a folder"));
  }
  CHECK(contains(zip_error(check::zip_bytes({{"a", "x"}, {"a", "y"}})), "member 'a' is there twice"));

  const size_t directory = good.find("PK\x01\x02");
  const auto changed = [&](size_t at, const std::string& bytes) {
    std::string out = good;
    return out.replace(at, bytes.size(), bytes);
  };
  CHECK(contains(zip_error(changed(directory + 10, "\x08")), "member 'a' is compressed"));
  CHECK(contains(zip_error(changed(directory + 20, "\x04")), "member 'a' is compressed"));
  CHECK(contains(zip_error(changed(directory + 8, "\x01")), "is encrypted"));
  CHECK(contains(zip_error(changed(26 + 4, "c")), "member 'a' is not what the directory says"));  // local name
  CHECK(contains(zip_error(changed(18, "\x06")), "member 'a' is not what the directory says"));   // local size
  CHECK(contains(zip_error(changed(8, "\x08")), "member 'a' is not what the directory says"));    // local method
  const std::string second_at_first = check::little_endian(0, 4);
  std::string same = check::zip_bytes({{"a", "hello"}, {"a", "hello"}});
  same.replace(same.rfind("PK\x01\x02") + 42, 4, second_at_first);
  CHECK(contains(zip_error(same), "is there twice"));
  // A member that holds a whole other member: the quoted one's header lies inside of the first one's data.
  const std::string inner = check::zip_bytes({{"b", "world"}});
  const std::string member = inner.substr(0, inner.find("PK\x01\x02"));
  std::string nested = check::zip_bytes({{"a", member}, {"b", "world"}});
  nested.replace(nested.rfind("PK\x01\x02") + 42, 4, check::little_endian(31, 4));
  CHECK(contains(zip_error(nested), "member 'b' lies over another member"));
  // The directory says less than there is: the second member is hidden between the first one and the directory.
  std::string hidden = good;
  hidden.erase(hidden.rfind("PK\x01\x02"), 47);
  const size_t end = hidden.find("PK\x05\x06");
  hidden.replace(end + 8, 4, std::string("\x01\x00\x01\x00", 4));
  hidden.replace(end + 12, 4, check::little_endian(47, 4));
  CHECK(contains(zip_error(hidden), "other bytes before the directory"));
}

const char kManifest[] = R"({"format": "tlc-bundle", "version": 1, "name": "net", "created_with": "tlc 0.1.0",
 "target": {"name": "cpu-x86", "runtime": "onnxruntime", "threads": 2}, "precision": "int8",
 "model": "model.onnx", "reference": null, "inputs": [{"name": "x", "dtype": "uint8", "shape": [-1, 3]}],
 "outputs": [{"name": "y", "dtype": "uint8", "shape": [-1, 3]}], "fed": null, "classes": ["cat", "dog"],
 "tokenizer": null, "build": {"profile": {}, "workspace_bytes": null, "builder_level": null}, "limits": {},
 "golden": {"source": "noise", "min_snr_db": 20,
  "samples": [{"image": null, "inputs": ["golden/in.npy"], "outputs": ["golden/out.npy"]}]},
 "licence": null, "lineage": {}, "files": {FILES}})";

Members payload() {
  const std::string array = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 3), }", "abc");
  return {{"golden/in.npy", array}, {"golden/out.npy", array}, {"model.onnx", "model"}};
}

// Return what the manifest says of `members`.
std::string listing(const Members& members) {
  std::string files;
  for (const auto& [name, content] : members) {
    files += (files.empty() ? "\"" : ", \"") + name + "\": {\"sha256\": \"" + tlc::sha256_hex(content) +
             "\", \"size_bytes\": " + std::to_string(content.size()) + "}";
  }
  return "{" + files + "}";
}

// Return a bundle with this manifest; "{FILES}" in it stands for the list of the members.
std::string bundle_bytes(std::string manifest = kManifest, const Members& extra = {}) {
  Members members = payload();
  if (contains(manifest, "{FILES}")) manifest = replaced(manifest, "{FILES}", listing(members));
  members.insert(members.begin(), {"manifest.json", manifest});
  members.insert(members.end(), extra.begin(), extra.end());
  return check::zip_bytes(members);
}

std::string bundle_error(const std::string& bytes) {
  const check::MemoryFile file(bytes);
  const std::string message = message_of<tlc::Error>([&] { tlc::Bundle bundle(file.path()); });
  CHECK(message.empty() || message.find(file.path()) == 0);
  return message;
}

void bundles_are_read() {
  const check::MemoryFile file(bundle_bytes(kManifest, {{"manifest.json.sig", "signature"}}));
  const tlc::Bundle bundle(file.path());
  CHECK(bundle.name() == "net" && bundle.runtime() == "onnxruntime" && bundle.threads() == 2);
  CHECK((bundle.classes() == std::vector<std::string>{"cat", "dog"}));
  CHECK(!bundle.preprocess().has_value());
  CHECK(bundle.golden().size() == 1 && bundle.golden_min_snr_db() == 20 && !bundle.golden()[0].image.has_value());
  CHECK(bundle.read(bundle.model()) == "model");
  CHECK((bundle.read_tensor(bundle.golden()[0].inputs[0]).shape == tlc::Shape{1, 3}));
  CHECK(bundle.file_count() == 3);
  bundle.verify();
  CHECK(contains(message_of<tlc::Error>([&] { bundle.read("manifest.json.sig"); }), "lists no manifest.json.sig"));
  CHECK(contains(message_of<tlc::Error>([&] { bundle.read_tensor("model.onnx"); }), "model.onnx is not an array"));
}

void an_altered_bundle_is_refused() {
  const std::string manifest = kManifest;
  // Another model of the same size, with its checksum in the zip made right.
  const std::string list = replaced(listing(payload()), tlc::sha256_hex("model"), tlc::sha256_hex("medal"));
  const check::MemoryFile file(bundle_bytes(replaced(manifest, "{FILES}", list)));
  const tlc::Bundle bundle(file.path());
  for (const std::string& message :
       {message_of<tlc::Error>([&] { bundle.read("model.onnx"); }), message_of<tlc::Error>([&] { bundle.verify(); })}) {
    CHECK(contains(message, "model.onnx has SHA-256 " + tlc::sha256_hex("model").substr(0, 16) +
                                "..., the manifest says " + tlc::sha256_hex("medal").substr(0, 16) + "..."));
  }

  CHECK(bundle_error(bundle_bytes()).empty());
  CHECK(contains(bundle_error(check::zip_bytes({{"a", "x"}})), "no bundle: it does not begin with manifest.json"));
  CHECK(contains(bundle_error(bundle_bytes("{}")), "no bundle: its manifest does not say so"));
  CHECK(contains(bundle_error(bundle_bytes("{")), "not JSON"));
  CHECK(contains(bundle_error(bundle_bytes(kManifest, {{"z", "x"}})), "z is not in the manifest's list"));
  CHECK(contains(bundle_error(bundle_bytes(kManifest, {{"manifest.json.sig", "x"}, {"z", "x"}})), "is not in the"));
  CHECK(contains(bundle_error(bundle_bytes(replaced(manifest, "\"version\": 1", "\"version\": 2"))),
                 "a bundle of version 2; tlc-run "));
  CHECK(contains(bundle_error(bundle_bytes(replaced(manifest, "{FILES}", "{}"))), "is not in the manifest's list"));
  CHECK(contains(bundle_error(bundle_bytes(replaced(manifest, "{FILES}", R"({"a": {"sha256": "", "size_bytes": 1}})"))),
                 "the manifest lists a, which is not there"));
  CHECK(contains(
      bundle_error(bundle_bytes(replaced(manifest, "{FILES}", R"({"model.onnx": {"sha256": "", "size_bytes": 6}})"))),
      "model.onnx has 5 bytes, the manifest says 6"));
  CHECK(contains(bundle_error(bundle_bytes(replaced(manifest, "{FILES}", R"({"a b": {}})"))),
                 "the manifest lists \"a b\", which is no name"));
  const auto field = [&](const char* from, const char* to) {
    return bundle_error(bundle_bytes(replaced(manifest, from, to)));
  };
  CHECK(contains(field("\"model\": \"model.onnx\"", "\"model\": \"b\""), "refers to \"b\", which it does not list"));
  CHECK(contains(field("\"reference\": null", "\"reference\": \"b\""), "refers to \"b\""));
  CHECK(contains(field("[\"golden/in.npy\"]", "[]"), "golden sample 0 has 0 inputs and 1 outputs, the model 1 and 1"));
  CHECK(contains(field("\"onnxruntime\"", "\"tflite\""),
                 "target.runtime is \"tflite\", not one of onnxruntime, openvino, tensorrt"));
  CHECK(contains(field("\"threads\": 2", "\"threads\": 0"), "target.threads is 0, not from 1 to 1024"));
  CHECK(contains(field("\"fed\": null", "\"fed\": {\"kind\": \"sound\"}"), "fed.kind is \"sound\", not one of"));
  CHECK(contains(field("\"name\": \"net\"", "\"name\": \"../net\""), "the name \"../net\" has other letters"));
  CHECK(contains(field("[\"cat\", \"dog\"]", "[\"cat\", 1]"), "classes[1] must be a string, not a number"));
}

void the_order_of_members_is_fixed() {
  const std::string manifest =
      replaced(kManifest, "{FILES}", R"({"a": {"sha256": "", "size_bytes": 1}, "b": {"sha256": "", "size_bytes": 1}})");
  const std::string swapped = check::zip_bytes({{"manifest.json", manifest}, {"b", "x"}, {"a", "x"}});
  CHECK(contains(bundle_error(swapped), "its members are in another order than sorted"));
}

}  // namespace

int main() {
  json_is_read();
  a_wrong_value_is_named_with_its_place();
  broken_json_is_refused_with_its_place();
  numbers_have_a_point_in_every_language();
  sha256_is_that_of_the_standard();
  tensors_have_bounded_sizes();
  arrays_are_read_and_written();
  broken_arrays_are_refused();
  names_are_read();
  zips_are_read();
  a_damaged_member_is_noticed();
  hostile_zips_are_refused();
  bundles_are_read();
  an_altered_bundle_is_refused();
  the_order_of_members_is_fixed();
  return check::finish();
}
