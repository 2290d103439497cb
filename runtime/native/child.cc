#include "child.h"

#ifdef __linux__
#include <sys/prctl.h>
#endif
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <new>

#include "error.h"
#include "json.h"
#include "json_object.h"

namespace tlc {

namespace {

// Messages are JSON objects, one a line.
void tell(int file, const JsonObject& message) {
  const std::string line = message.text() + "\n";
  size_t done = 0;
  while (done < line.size()) {
    const ssize_t written = write(file, line.data() + done, line.size() - done);
    if (written < 0 && errno != EINTR) _exit(1);  // nobody listens any more
    if (written > 0) done += static_cast<size_t>(written);
  }
}

[[noreturn]] void be_child(int file, const std::function<std::string(const Stage&)>& work) {
#ifdef __linux__
  prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
  dup2(STDERR_FILENO, STDOUT_FILENO);
  const auto failed = [file](const std::string& error, const std::string& hint) {
    tell(file, JsonObject().add("error", error).add("hint", hint));
  };
  try {
    const std::string result = work([file](const std::string& stage) { tell(file, JsonObject().add("stage", stage)); });
    tell(file, JsonObject().add("result", result));
  } catch (const Error& error) {
    failed(error.what(), error.hint);
  } catch (const std::bad_alloc&) {
    failed("out of memory", "Close what else uses memory, or add swap.");
  } catch (const std::exception& error) {
    failed(error.what(), "");
  }
  // No destructors of static objects: libraries' own may crash, and the answer is given.
  _exit(0);
}

std::string read_all(int file) {
  std::string text;
  char piece[4096];
  ssize_t count = 0;
  while ((count = read(file, piece, sizeof piece)) != 0) {
    if (count > 0) text.append(piece, static_cast<size_t>(count));
    if (count < 0 && errno != EINTR) break;
  }
  return text;
}

void take(ChildEnd& end, const std::string& text) {
  size_t start = 0;
  for (size_t stop = text.find('\n'); stop != std::string::npos; stop = text.find('\n', start)) {
    const Json message = Json::parse(text.substr(start, stop - start));
    start = stop + 1;
    if (const Json* stage = message.find("stage")) end.stage = stage->string();
    if (const Json* result = message.find("result")) {
      end.done = true;
      end.result = result->string();
    }
    if (const Json* error = message.find("error")) {
      end.error = error->string();
      end.hint = message.at("hint").string();
    }
  }
}

}  // namespace

ChildEnd run_in_child(const std::function<std::string(const Stage&)>& work) {
  int ends[2];
  std::fflush(nullptr);  // what is buffered would be written twice
  if (pipe(ends) != 0) throw Error("cannot make a pipe: " + std::string(std::strerror(errno)), "Close other programs.");
  const pid_t child = fork();
  if (child < 0) {
    const std::string reason = std::strerror(errno);
    close(ends[0]);
    close(ends[1]);
    throw Error("cannot start a process: " + reason, "Close other programs.");
  }
  if (child == 0) {
    close(ends[0]);
    be_child(ends[1], work);
  }
  close(ends[1]);
  ChildEnd end;
  const std::string text = read_all(ends[0]);
  close(ends[0]);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  take(end, text);
  if (WIFSIGNALED(status)) {
    end.done = false;
    end.signal = WTERMSIG(status);
  } else if (!end.done && end.error.empty()) {
    end.error = "the process ended with status " + std::to_string(WEXITSTATUS(status)) + " and without an answer";
  }
  return end;
}

}  // namespace tlc
