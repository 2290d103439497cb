// Preprocess pictures as tlc-run does: preprocess_probe reads lines RECORD<tab>PICTURE<tab>OUT from stdin, where RECORD
// is a preprocessing record as JSON, and writes the model's input of PICTURE to OUT.npy. Each line is answered by "ok"
// or the error. tests/native/test_images.py compares the result with Python's.

#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>

#include "error.h"
#include "image.h"
#include "json.h"
#include "npy.h"
#include "preprocess.h"

namespace {

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw tlc::Error("cannot read " + path, "Check the path.");
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void convert(const std::string& record, const std::string& picture, const std::string& out) {
  const tlc::Preprocess preprocess = tlc::parse_preprocess(tlc::Json::parse(record));
  const tlc::Image image = tlc::read_image(read_file(picture), preprocess.channel_count());
  std::ofstream file(out, std::ios::binary);
  file << tlc::npy_bytes(tlc::preprocessed(preprocess, image));
}

}  // namespace

int main() {
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream fields(line);
    std::string record, picture, out;
    std::getline(fields, record, '\t');
    std::getline(fields, picture, '\t');
    std::getline(fields, out, '\t');
    try {
      convert(record, picture, out);
      std::cout << "ok" << std::endl;
    } catch (const tlc::Error& error) {
      std::cout << "error: " << error.what() << " hint: " << error.hint << std::endl;
    }
  }
  return 0;
}
