// What the native tests share: CHECK says what is not true and goes on, finish() is what main() returns.
#ifndef TLC_TESTS_NATIVE_CHECK_H_
#define TLC_TESTS_NATIVE_CHECK_H_

#include <cstdio>
#include <string>

namespace check {

inline int failures = 0;

#define CHECK(condition)                                                    \
  do {                                                                      \
    if (!(condition)) {                                                     \
      std::printf("%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      ++check::failures;                                                    \
    }                                                                       \
  } while (false)

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Return the message of the error that `call` throws, or "" if it throws none. Every error has a hint.
template <typename E, typename Call>
std::string message_of(Call call) {
  try {
    call();
  } catch (const E& error) {
    CHECK(!error.hint.empty());
    return error.what();
  }
  return "";
}

inline int finish() {
  std::printf("%s\n", failures == 0 ? "all true" : "FAILED");
  return failures == 0 ? 0 : 1;
}

}  // namespace check

#endif  // TLC_TESTS_NATIVE_CHECK_H_
