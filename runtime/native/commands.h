// What tlc-run can do. Each command prints its result to stdout and returns the exit status; errors are thrown.
#ifndef TLC_NATIVE_COMMANDS_H_
#define TLC_NATIVE_COMMANDS_H_

#include "args.h"

namespace tlc {

int run_bench(const Args& args);
int run_build(const Args& args);
int run_check(const Args& args);
int run_eval(const Args& args);
int run_info(const Args& args);
int run_serve_once(const Args& args);
int run_worker(const Args& args);

}  // namespace tlc

#endif  // TLC_NATIVE_COMMANDS_H_
