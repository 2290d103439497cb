// Any bytes are the beginning of a plan or an Error; any text is the record of one or an Error.

#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <string>

#include "error.h"
#include "plan.h"

namespace {

// A folder of this process's own, in memory where the system has such a place.
struct Folder {
  Folder() {
    struct stat status{};
    path = (stat("/dev/shm", &status) == 0 ? "/dev/shm" : "/tmp") + std::string("/fuzz_plan_XXXXXX");
    if (mkdtemp(&path[0]) == nullptr) abort();
    plan = path + "/a.plan";
  }
  ~Folder() {
    unlink((plan + ".json").c_str());
    rmdir(path.c_str());
  }

  std::string path;
  std::string plan;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size_bytes) {
  static const Folder folder;
  const std::string bytes(data, data + size_bytes);
  try {
    tlc::plan_version(bytes, "a.plan");
  } catch (const tlc::Error&) {
  }
  std::ofstream(folder.plan + ".json", std::ios::binary) << bytes;
  try {
    const tlc::PlanRecord record = tlc::read_plan_record(folder.plan);
    tlc::check_plan(folder.plan, bytes, record, "10.3.0", "8.7", "Orin");
  } catch (const tlc::Error&) {
  }
  return 0;
}
