// tlc-run: run a compressed model on the device that it ships to, without Python.

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "args.h"
#include "bench.h"
#include "error.h"
#include "report.h"

namespace {

int fail(const std::string& message, const std::string& hint, int status) {
  std::fprintf(stderr, "error: %s\n", message.c_str());
  if (!hint.empty()) std::fprintf(stderr, "hint: %s\n", hint.c_str());
  return status;
}

std::string run(const tlc::Args& args) {
  if (args.command == tlc::Args::Command::kHelp) return tlc::kHelp;
  if (args.command == tlc::Args::Command::kVersion) return "tlc-run " TLC_VERSION "\n";
  const tlc::BenchResult result = tlc::bench(args);
  return args.json ? tlc::json_report(result) : tlc::text_report(result);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::string text = run(tlc::parse_args(std::vector<std::string>(argv + 1, argv + argc)));
    if (std::fputs(text.c_str(), stdout) < 0 || std::fflush(stdout) != 0) {
      return fail("cannot write the result to stdout", "Check the disk or the reading end of the pipe.", 1);
    }
    return 0;
  } catch (const tlc::UsageError& error) {
    return fail(error.what(), error.hint, 2);
  } catch (const tlc::Error& error) {
    return fail(error.what(), error.hint, 1);
  } catch (const std::exception& error) {
    return fail(std::string("internal error: ") + error.what(), "Report this with the command that you ran.", 1);
  }
}
