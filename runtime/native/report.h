// What a person, and what a program reads.
#ifndef TLC_NATIVE_REPORT_H_
#define TLC_NATIVE_REPORT_H_

#include <string>

#include "bench.h"
#include "json_object.h"

namespace tlc {

// Return BenchReport of runtime/bench_report.py with one model and one launch, as one line of JSON.
std::string json_report(const BenchResult& result, const std::string& command);

// Return a few lines of text.
std::string text_report(const BenchResult& result);

}  // namespace tlc

#endif  // TLC_NATIVE_REPORT_H_
