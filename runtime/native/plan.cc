#include "plan.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <vector>

#include "error.h"
#include "files.h"
#include "json.h"
#include "sha256.h"

namespace tlc {

namespace {

constexpr size_t kHeaderBytes = 28;
constexpr char kBuildAgain[] = "Build it on this machine: tlc-run build BUNDLE, or tlc build.";

// The version's leading numbers: "10.13.3.9.post1" -> 10, 13, 3, 9.
std::vector<int> numbers_of(const std::string& version) {
  std::vector<int> numbers;
  size_t start = 0;
  while (start <= version.size()) {
    const size_t end = std::min(version.find('.', start), version.size());
    const std::string part = version.substr(start, end - start);
    if (part.empty() || part.size() > 6 || part.find_first_not_of("0123456789") != std::string::npos) break;
    numbers.push_back(std::stoi(part));
    start = end + 1;
  }
  return numbers;
}

std::string shortened(const std::string& sha256) { return sha256.substr(0, 12) + "..."; }

// Version-compatible plans also run on later releases of the same major version and the next one: 8 to 10, 10 to 11.
bool runs_on(const PlanRecord& record, const std::string& installed) {
  if (same_version(record.tensorrt, installed)) return true;
  const std::vector<int> built = numbers_of(record.tensorrt);
  const std::vector<int> here = numbers_of(installed);
  if (!record.version_compatible || built.empty() || here.empty() || !(here > built)) return false;
  const int following = built[0] == 8 ? 10 : built[0] == 10 ? 11 : -1;
  return here[0] == built[0] || here[0] == following;
}

bool hardware_fits(const PlanRecord& record, const std::string& sm) {
  return record.hardware_compatible && std::min(numbers_of(record.sm), numbers_of(sm)) >= std::vector<int>{8, 0};
}

}  // namespace

// Bytes 0-3 are "ftrt", 4-7 the serialisation version, and for version 0 bytes 24-27 hold the version's four numbers:
// printPlanVersion() in samples/common/sampleEngines.cpp of NVIDIA/TensorRT, from 10.0 on. Plans of 8.x also begin with
// "ftrt", but where their version stands is not documented, so numbers below 9 are not believed.
std::optional<std::string> plan_version(const std::string& head, const std::string& name) {
  if (head.size() < kHeaderBytes || head.compare(0, 4, "ftrt") != 0) {
    throw Error(name + " is not a TensorRT plan: it has " + std::to_string(head.size()) + " bytes and begins with " +
                    json_string(head.substr(0, 4)) + ", not \"ftrt\"",
                "Build one on the device: tlc-run build BUNDLE.");
  }
  const auto byte = [&](size_t at) { return static_cast<int>(static_cast<unsigned char>(head[at])); };
  if (head.compare(4, 4, std::string(4, '\0')) != 0 || byte(24) < 9) return std::nullopt;
  std::string version;
  for (size_t at = 24; at < kHeaderBytes; ++at) version += (at == 24 ? "" : ".") + std::to_string(byte(at));
  return version;
}

PlanRecord read_plan_record(const std::string& path) {
  const std::string sidecar = path + ".json";
  struct stat status{};
  if (stat(sidecar.c_str(), &status) != 0) {
    throw Error(path + " has no sidecar " + sidecar + ": what it was built from and for is unknown",
                "Copy the .json along with the plan, or build it again with tlc-run build.");
  }
  PlanRecord record;
  try {
    const Json json = Json::parse(read_file(sidecar));
    record.onnx = json.at("onnx").string();
    record.target = json.at("target").string();
    record.sha256 = json.at("plan_sha256").string();
    record.tensorrt = json.at("tensorrt").string();
    record.sm = json.at("sm").string();
    record.gpu = json.at("gpu").string();
    record.version_compatible = json.at("version_compatible").boolean();
    record.hardware_compatible = json.at("hardware_compatible").boolean();
    record.stripped = json.at("stripped").boolean();
    if (const Json* core = json.find("dla_core")) record.dla_core = static_cast<int>(core->integer());
  } catch (const Error& error) {
    throw Error(sidecar + " is not an engine's record: " + error.what(), "Build the plan again with this tlc-run.");
  }
  return record;
}

// A plan runs on the TensorRT release that built it, to the last number, and on GPUs of the same compute capability.
// https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/advanced.html#engine-compatibility
void check_plan(const std::string& path, const std::string& plan, const PlanRecord& record, const std::string& version,
                const std::string& sm, const std::string& gpu) {
  const std::string found = sha256_hex(plan);
  if (found != record.sha256) {
    throw Error(path + " is not the plan that its sidecar describes: SHA-256 " + shortened(found) + ", recorded " +
                    shortened(record.sha256),
                "The file was cut short or replaced: copy plan and .json together, or build again.");
  }
  const std::optional<std::string> header = plan_version(plan, path);
  if (header && !same_version(*header, record.tensorrt)) {
    throw Error(path + " was built by TensorRT " + *header + ", its sidecar says " + record.tensorrt,
                "Copy plan and .json together, or build again.");
  }
  if (!runs_on(record, version)) {
    const std::string kind = record.version_compatible ? "version-compatible plan, but " : "";
    throw Error(path + " was built by TensorRT " + record.tensorrt + ", this machine has " + version + ": " + kind +
                    "a plan runs on the release that built it",
                kBuildAgain);
  }
  if (record.sm != sm && !hardware_fits(record, sm)) {
    throw Error(
        path + " was built for SM " + record.sm + " (" + record.gpu + "), this GPU is SM " + sm + " (" + gpu + ")",
        kBuildAgain);
  }
}

bool same_version(const std::string& first, const std::string& second) {
  const std::vector<int> a = numbers_of(first);
  const std::vector<int> b = numbers_of(second);
  const auto count = static_cast<std::ptrdiff_t>(std::min(a.size(), b.size()));
  return std::equal(a.begin(), a.begin() + count, b.begin());
}

}  // namespace tlc
