// What a user can fix. main() turns it into "error: ...", "hint: ..." and an exit status.
#ifndef TLC_NATIVE_ERROR_H_
#define TLC_NATIVE_ERROR_H_

#include <stdexcept>
#include <string>

namespace tlc {

// Exit status 1. The message says what is wrong, with the value; the hint is the next step, in the imperative.
class Error : public std::runtime_error {
 public:
  Error(const std::string& message, std::string hint) : std::runtime_error(message), hint(std::move(hint)) {}
  const std::string hint;
};

// Exit status 2: a wrong option or argument; nothing was started.
class UsageError : public Error {
 public:
  using Error::Error;
};

}  // namespace tlc

#endif  // TLC_NATIVE_ERROR_H_
