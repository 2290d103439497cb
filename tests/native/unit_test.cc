// Tests of the native runtime that need neither ONNX Runtime nor a model.

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "args.h"
#include "bench.h"
#include "check.h"
#include "error.h"
#include "input.h"
#include "json.h"
#include "memory.h"
#include "report.h"
#include "stats.h"

namespace {

using check::contains;
using check::message_of;

std::string usage_error(const std::vector<std::string>& words) {
  return message_of<tlc::UsageError>([&] { tlc::parse_args(words); });
}

void percentiles_are_nearest_rank() {
  tlc::SamplesNs hundred;
  for (int i = 100; i >= 1; --i) hundred.push_back(i);
  CHECK(tlc::percentile_ns(hundred, 50) == 50);
  CHECK(tlc::percentile_ns(hundred, 7) == 7);  // 0.07 * 100 would round up to 8
  CHECK(tlc::percentile_ns(hundred, 99) == 99);
  CHECK(tlc::percentile_ns(hundred, 100) == 100);
  CHECK(tlc::percentile_ns({5, 1, 3}, 50) == 3);
  CHECK(tlc::percentile_ns({4, 2}, 50) == 2);
  CHECK(tlc::percentile_ns({4, 2}, 51) == 4);
  CHECK(tlc::percentile_ns({9}, 1) == 9);
}

void a_summary_is_in_milliseconds() {
  const tlc::Summary summary = tlc::summarise({3000000, 1000000, 2000000});
  CHECK(summary.p50_ms == 2.0);
  CHECK(summary.p90_ms == 3.0);
  CHECK(summary.p99_ms == 3.0);
  CHECK(summary.mean_ms == 2.0);
  CHECK(summary.min_ms == 1.0);
  CHECK(summary.throughput_per_s == 500.0);
}

void options_are_read() {
  const tlc::Args args = tlc::parse_args({"bench", "--threads=2", "m.onnx", "--runs", "7", "--warmup", "0", "--seed",
                                          "18", "--shape", "a:b:1x3x8x8", "--ort-lib", "lib.so", "--json"});
  CHECK(args.command == tlc::Args::Command::kBench);
  CHECK(args.model == "m.onnx");
  CHECK(args.threads == 2 && args.runs == 7 && args.warmup_runs == 0 && args.seed == 18);
  CHECK(args.ort_lib == "lib.so" && args.json);
  CHECK((args.shapes.at("a:b") == tlc::Shape{1, 3, 8, 8}));
}

void help_and_version_need_no_model() {
  CHECK(tlc::parse_args({"bench", "--help"}).command == tlc::Args::Command::kHelp);
  CHECK(tlc::parse_args({"-h"}).command == tlc::Args::Command::kHelp);
  CHECK(tlc::parse_args({"--version"}).command == tlc::Args::Command::kVersion);
}

void a_wrong_option_names_value_and_limit() {
  CHECK(usage_error({"bench", "m", "--threads", "0"}) == "--threads must be a whole number from 1 to 1024, got '0'");
  CHECK(contains(usage_error({"bench", "m", "--runs", "1e3"}), "got '1e3'"));
  CHECK(contains(usage_error({"bench", "m", "--runs", "99999999999999999999999"}), "to 10000000, got"));
  CHECK(contains(usage_error({"bench", "m", "--runs", ""}), "got ''"));
  CHECK(contains(usage_error({"bench", "m", "--seed", "-1"}), "got '-1'"));
  CHECK(usage_error({"bench", "m", "--thread", "1"}) == "unknown option '--thread'");
  CHECK(usage_error({"bench", "m", "--threads"}) == "--threads needs a value");
  CHECK(usage_error({"bench", "m", "n"}) == "more than one model: 'm' and 'n'");
  CHECK(usage_error({"bench"}) == "no model given");
  CHECK(usage_error({"bunch", "m"}) == "unknown command 'bunch'");
  CHECK(usage_error({}) == "no command given");
  CHECK(usage_error({"bench", "m", "--shape", "1x3"}) == "--shape must be NAME:DIMS, got '1x3'");
  CHECK(contains(usage_error({"bench", "m", "--shape", "x:1x0"}), "each dimension of --shape"));
  CHECK(contains(usage_error({"bench", "m", "--shape", "x:1x"}), "got ''"));
  CHECK(contains(usage_error({"bench", "m", "--shape", "x:9999999999"}), "got '9999999999'"));
}

void json_strings_always_parse() {
  CHECK(tlc::json_string("a/b.onnx") == "\"a/b.onnx\"");
  CHECK(tlc::json_string("q\"b\\n\nt\tr\r") == "\"q\\\"b\\\\n\\nt\\tr\\r\"");
  CHECK(tlc::json_string(std::string("\x01\0", 2)) == "\"\\u0001\\u0000\"");
  CHECK(tlc::json_string("\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80") == "\"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\"");
  CHECK(tlc::json_string("\xFF") == "\"\\ufffd\"");
  CHECK(tlc::json_string("\xE2\x82") == "\"\\ufffd\\ufffd\"");             // cut off
  CHECK(tlc::json_string("\xC0\xAF") == "\"\\ufffd\\ufffd\"");             // overlong
  CHECK(tlc::json_string("\xED\xA0\x80") == "\"\\ufffd\\ufffd\\ufffd\"");  // surrogate
}

void json_numbers_read_back_exactly() {
  CHECK(tlc::json_number(0.5) == "0.5");
  CHECK(tlc::json_number(1.234567) == "1.234567");
  for (const double value : {1.0 / 3.0, 0.1 + 0.2, 123456.789012, 1e-9}) {
    CHECK(std::stod(tlc::json_number(value)) == value);
  }
}

const tlc::InputSpec kImage{"x", tlc::kFloat, {-1, 3, 8, 8}};

void a_dynamic_batch_is_one_and_the_rest_must_be_given() {
  CHECK((tlc::resolve_shapes({kImage}, {}).at(0) == tlc::Shape{1, 3, 8, 8}));
  CHECK((tlc::resolve_shapes({kImage}, {{"x", {4, 3, 8, 8}}}).at(0) == tlc::Shape{4, 3, 8, 8}));
  const tlc::InputSpec dynamic{"y", tlc::kFloat, {-1, 3, -1, -1}};
  CHECK(message_of<tlc::Error>([&] { tlc::resolve_shapes({dynamic}, {}); }) ==
        "input 'y' has dynamic dimensions besides the batch: ?x3x?x?");
  CHECK((tlc::resolve_shapes({dynamic}, {{"y", {1, 3, 9, 9}}}).at(0) == tlc::Shape{1, 3, 9, 9}));
}

void a_shape_that_does_not_fit_is_refused() {
  CHECK(message_of<tlc::Error>([] { tlc::resolve_shapes({kImage}, {{"x", {1, 1, 8, 8}}}); }) ==
        "--shape x:1x1x8x8 does not fit the model's ?x3x8x8");
  CHECK(message_of<tlc::Error>([] { tlc::resolve_shapes({kImage}, {{"x", {1, 3, 8}}}); }) ==
        "--shape x:1x3x8 does not fit the model's ?x3x8x8");
  CHECK(message_of<tlc::Error>([] { tlc::resolve_shapes({kImage}, {{"z", {1}}}); }) == "the model has no input 'z'");
  CHECK(contains(message_of<tlc::Error>([] { tlc::random_input(kImage, {2000000000, 3, 8, 8}, 0); }),
                 "is larger than 4 GiB"));
}

void random_input_is_repeatable_and_in_range() {
  const tlc::Buffer one = tlc::random_input(kImage, {1, 3, 8, 8}, 7);
  CHECK(one.bytes.size() == 4 * 3 * 8 * 8);
  CHECK(one.bytes == tlc::random_input(kImage, {1, 3, 8, 8}, 7).bytes);
  CHECK(one.bytes != tlc::random_input(kImage, {1, 3, 8, 8}, 8).bytes);
  float low = 1, high = -1;
  for (size_t at = 0; at < one.bytes.size(); at += sizeof(float)) {
    float value = 0;
    std::memcpy(&value, one.bytes.data() + at, sizeof value);
    low = std::fmin(low, value);
    high = std::fmax(high, value);
  }
  CHECK(low >= -1 && low < -0.5F && high > 0.5F && high < 1);
  // The first draw of mt19937_64(5489) is 14514284786278117030, by the standard's algorithm: its top bit is set.
  CHECK(tlc::random_input({"i", tlc::kInt64, {1}}, {1}, 5489).bytes[0] == 1);
  CHECK(tlc::random_input({"h", tlc::kFloat16, {5}}, {5}, 0).bytes.size() == 10);
  CHECK(contains(message_of<tlc::Error>([] { tlc::dtype_name({"s", static_cast<tlc::OrtElementType>(8), {1}}); }),
                 "input 's' has ONNX element type 8"));
}

void a_report_says_what_was_measured() {
  const tlc::BenchResult result{"m\".onnx", 1048576,      "1.2.3",           1, 0, {{"x", "float32", {1, 3}}},
                                20,         std::nullopt, {2000000, 1000000}};
  const std::string json = tlc::json_report(result);
  CHECK(contains(json, "\"model\": \"m\\\".onnx\""));
  CHECK(contains(json, "\"samples_ms\": [2, 1]"));
  CHECK(contains(json, "\"inputs\": [{\"name\": \"x\", \"dtype\": \"float32\", \"shape\": [1, 3]}]"));
  CHECK(contains(json, "\"peak_memory_bytes\": null"));
  CHECK(contains(tlc::text_report(result), "p50 1.000 ms"));
  CHECK(contains(tlc::text_report(result), "not known on this system"));
}

void peak_memory_never_falls() {
#ifdef __linux__
  const auto before = tlc::peak_resident_bytes();
  CHECK(before.has_value());
  const std::vector<char> block(64 << 20, 1);
  const auto after = tlc::peak_resident_bytes();
  CHECK(*after - *before > (48 << 20));
#endif
}

}  // namespace

int main() {
  percentiles_are_nearest_rank();
  a_summary_is_in_milliseconds();
  options_are_read();
  help_and_version_need_no_model();
  a_wrong_option_names_value_and_limit();
  json_strings_always_parse();
  json_numbers_read_back_exactly();
  a_dynamic_batch_is_one_and_the_rest_must_be_given();
  a_shape_that_does_not_fit_is_refused();
  random_input_is_repeatable_and_in_range();
  a_report_says_what_was_measured();
  peak_memory_never_falls();
  return check::finish();
}
