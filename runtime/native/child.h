// Work in a process of its own, whose crash or whose end by the kernel is an answer.
#ifndef TLC_NATIVE_CHILD_H_
#define TLC_NATIVE_CHILD_H_

#include <functional>
#include <string>

namespace tlc {

// How a child ended.
struct ChildEnd {
  bool done = false;
  std::string result;  // what the work returned, where it is done
  std::string error;   // what it threw otherwise, or what ended it
  std::string hint;
  int signal = 0;     // that ended it; 0: none
  std::string stage;  // the last that it told
};

// What the work tells before each step.
using Stage = std::function<void(const std::string&)>;

// Run `work` in a child, and wait for it. What it prints to stdout goes to stderr, because libraries print. The child
// dies with this process. Call it while this process has one thread and no CUDA, neither of which a child inherits.
ChildEnd run_in_child(const std::function<std::string(const Stage&)>& work);

}  // namespace tlc

#endif  // TLC_NATIVE_CHILD_H_
