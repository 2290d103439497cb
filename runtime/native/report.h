// What a person, and what a program reads.
#ifndef TLC_NATIVE_REPORT_H_
#define TLC_NATIVE_REPORT_H_

#include <string>

#include "bench.h"

namespace tlc {

// Return one JSON object. `latency` has the fields of LatencyRecord in runtime/report.py, except for the speedup,
// which needs a second model; `size_bytes` and `peak_memory_bytes` are those of Measurement.
std::string json_report(const BenchResult& result);

// Return a few lines of text.
std::string text_report(const BenchResult& result);

}  // namespace tlc

#endif  // TLC_NATIVE_REPORT_H_
