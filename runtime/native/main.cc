// tlc-run: run a compressed model on the device that it ships to, without Python.

#include <cstdio>
#include <exception>
#include <map>
#include <new>
#include <string>
#include <vector>

#include "args.h"
#include "commands.h"
#include "error.h"

namespace {

int fail(const std::string& message, const std::string& hint, int status) {
  std::fprintf(stderr, "error: %s\n", message.c_str());
  if (!hint.empty()) std::fprintf(stderr, "hint: %s\n", hint.c_str());
  return status;
}

int print(const std::string& text) {
  std::fputs(text.c_str(), stdout);
  return 0;
}

int run(const tlc::Args& args) {
  static const std::map<std::string, int (*)(const tlc::Args&)> commands = {
      {"bench", tlc::run_bench},   {"build", tlc::run_build}, {"check", tlc::run_check},
      {"eval", tlc::run_eval},     {"info", tlc::run_info},   {"serve-once", tlc::run_serve_once},
      {"worker", tlc::run_worker},
  };
  if (args.command == "help") return print(tlc::help_text(args.topic));
  if (args.command == "version") return print("tlc-run " TLC_VERSION "\n");
  const auto command = commands.find(args.command);
  if (command == commands.end()) {
    throw tlc::UsageError("this tlc-run was built without the command " + args.command, "Build it again, whole.");
  }
  return command->second(args);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const int status = run(tlc::parse_args(std::vector<std::string>(argv + 1, argv + argc)));
    if (std::ferror(stdout) != 0 || std::fflush(stdout) != 0) {
      return fail("cannot write the result to stdout", "Check the disk or the reading end of the pipe.", 1);
    }
    return status;
  } catch (const tlc::UsageError& error) {
    return fail(error.what(), error.hint, 2);
  } catch (const tlc::Error& error) {
    return fail(error.what(), error.hint, 1);
  } catch (const std::bad_alloc&) {
    return fail("memory ran out", "Free some, or run a smaller batch.", 1);
  } catch (const std::exception& error) {
    return fail(std::string("internal error: ") + error.what(), "Report this with the command that you ran.", 1);
  }
}
