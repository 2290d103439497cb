// Tests of the native runtime that need neither ONNX Runtime nor a model.

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "args.h"
#include "check.h"
#include "error.h"
#include "health.h"
#include "input.h"
#include "json.h"
#include "memory.h"
#include "power.h"
#include "profile.h"
#include "runner.h"
#include "stats.h"

namespace {

using check::contains;
using check::message_of;

std::string usage_error(const std::vector<std::string>& words) {
  return message_of<tlc::UsageError>([&] { tlc::parse_args(words); });
}

int64_t percentile(tlc::SamplesNs samples, int rank) {
  std::sort(samples.begin(), samples.end());
  return tlc::quantile_ns(samples, rank).ns;
}

tlc::SamplesNs one_to(int64_t n) {
  tlc::SamplesNs samples;
  for (int64_t i = 1; i <= n; ++i) samples.push_back(i);
  return samples;
}

void percentiles_are_nearest_rank() {
  CHECK(percentile(one_to(100), 50) == 50);
  CHECK(percentile(one_to(100), 7) == 7);  // 0.07 * 100 would round up to 8
  CHECK(percentile(one_to(100), 99) == 99);
  CHECK(percentile(one_to(100), 100) == 100);
  CHECK(percentile({5, 1, 3}, 50) == 3);
  CHECK(percentile({4, 2}, 50) == 2);
  CHECK(percentile({4, 2}, 51) == 4);
  CHECK(percentile({9}, 1) == 9);
  CHECK(tlc::median_ns({4, 2}) == 3);
  CHECK(tlc::median_ns({5, 1, 3}) == 3);
}

void bounds_are_order_statistics() {
  // From quantile_bounds() of runtime/statistics.py, whose source is David and Nagaraja.
  const tlc::QuantileNs p50 = tlc::quantile_ns(one_to(100), 50);
  CHECK(p50.low_ns == 37 && p50.high_ns == 64);
  // 0.99^n is above 0.005 up to 527 samples.
  CHECK(!tlc::quantile_ns(one_to(527), 99).high_ns);
  CHECK(tlc::quantile_ns(one_to(528), 99).high_ns == 528);
  CHECK(!tlc::quantile_ns(one_to(7), 50).low_ns);
  CHECK(tlc::quantile_ns(one_to(8), 50).low_ns == 1);
  CHECK(tlc::quantile_ns(one_to(9), 100).low_ns == 9 && !tlc::quantile_ns(one_to(9), 100).high_ns);
}

void growth_is_what_every_run_adds() {
  std::vector<int64_t> step(40, 1000), slope;
  for (size_t i = 20; i < step.size(); ++i) step[i] = 900000;
  for (int64_t i = 0; i < 40; ++i) slope.push_back(100 * i);
  CHECK(tlc::growth_bytes(step) == 0);
  CHECK(tlc::growth_bytes(slope) == 100);
  CHECK(tlc::growth_bytes({1, 2, 3}) == 0);
}

void blocks_are_a_multiple_of_the_feeds() {
  CHECK(tlc::block_runs(1, 1) == 8);
  CHECK(tlc::block_runs(0.1, 1) == 40);
  CHECK(tlc::block_runs(100, 1) == 2);
  CHECK(tlc::block_runs(1000, 1) == 1);
  CHECK(tlc::block_runs(1000, 3) == 3);
  CHECK(tlc::block_runs(1, 5) == 10);
}

void options_are_read() {
  const tlc::Args args = tlc::parse_args({"bench", "--threads=2", "m.onnx", "--duration", "0.5s", "--seed", "18",
                                          "--shape", "a=b=1x3x8x8", "--size", "T=16", "--ort-lib", "lib.so", "--json"});
  CHECK(args.command == "bench" && args.model == "m.onnx");
  CHECK(args.threads == 2 && args.duration_s == 0.5 && args.seed == 18 && !args.rounds);
  CHECK(args.ort_lib == "lib.so" && args.json && args.energy);
  CHECK((args.shapes.at("a=b") == tlc::Shape{1, 3, 8, 8}));
  CHECK(args.sizes.at("T") == 16);
  CHECK(tlc::parse_args({"build", "b.tlc", "--workspace", "512"}).workspace_bytes == int64_t{512} << 20);
  CHECK(tlc::parse_args({"build", "b.tlc", "--workspace", "2G"}).workspace_bytes == int64_t{2} << 30);
  const tlc::Args serve = tlc::parse_args({"serve-once", "b.tlc", "--top", "3", "cat.jpg"});
  CHECK(serve.model == "b.tlc" && serve.input == "cat.jpg" && serve.top == 3);
}

void help_and_version_need_no_model() {
  CHECK(tlc::parse_args({"bench", "--help"}).command == "help");
  CHECK(tlc::parse_args({"bench", "--help"}).topic == "bench");
  CHECK(tlc::parse_args({"-h"}).command == "help");
  CHECK(tlc::parse_args({"--version"}).command == "version");
  CHECK(contains(tlc::help_text("bench"), "--duration TIME"));
  CHECK(!contains(tlc::help_text("check"), "--duration"));
  CHECK(contains(tlc::help_text(""), "serve-once"));
}

void a_wrong_option_names_value_and_limit() {
  CHECK(usage_error({"bench", "m", "--threads", "0"}) == "--threads must be a whole number from 1 to 1024, got '0'");
  CHECK(contains(usage_error({"bench", "m", "--rounds", "1e3"}), "got '1e3'"));
  CHECK(contains(usage_error({"bench", "m", "--rounds", "99999999999999999999999"}), "to 1000000, got"));
  CHECK(contains(usage_error({"bench", "m", "--rounds", ""}), "got ''"));
  CHECK(contains(usage_error({"bench", "m", "--seed", "-1"}), "got '-1'"));
  CHECK(contains(usage_error({"bench", "m", "--duration", "0"}), "seconds above 0 and at most 86400, got '0'"));
  CHECK(contains(usage_error({"bench", "m", "--duration", "1e3"}), "got '1e3'"));
  CHECK(contains(usage_error({"build", "m", "--workspace", "2T"}), "got '2T'"));
  CHECK(usage_error({"bench", "m", "--backend", "tvm"}) ==
        "--backend must be onnxruntime, openvino or tensorrt, got 'tvm'");
  CHECK(usage_error({"bench", "m", "--thread", "1"}) == "unknown option '--thread'");
  CHECK(usage_error({"check", "m", "--rounds", "1"}) == "tlc-run check has no option '--rounds'");
  CHECK(usage_error({"bench", "m", "--json=1"}) == "--json takes no value");
  CHECK(usage_error({"bench", "m", "--threads"}) == "--threads needs a value");
  CHECK(usage_error({"bench", "m", "n"}) == "one argument too many: 'n'");
  CHECK(usage_error({"bench"}) == "no MODEL given");
  CHECK(usage_error({"serve-once", "b.tlc"}) == "no INPUT given");
  CHECK(usage_error({"eval", "b.tlc"}) == "no --data given");
  CHECK(usage_error({"bunch", "m"}) == "unknown command 'bunch'");
  CHECK(usage_error({}) == "no command given");
  CHECK(usage_error({"bench", "m", "--shape", "1x3"}) == "--shape must be NAME=VALUE, got '1x3'");
  CHECK(contains(usage_error({"bench", "m", "--shape", "x=1x0"}), "each dimension of --shape"));
  CHECK(contains(usage_error({"bench", "m", "--shape", "x=1x"}), "got ''"));
  CHECK(contains(usage_error({"bench", "m", "--shape", "x=9999999999"}), "got '9999999999'"));
  CHECK(contains(usage_error({"bench", "m", "--size", "T=0"}), "--size T must be"));
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

const tlc::TensorSpec kImage{"x", tlc::DType::kFloat32, {-1, 3, 8, 8}, {"N", "", "", ""}};
const tlc::TensorSpec kTokens{"mask", tlc::DType::kInt64, {-1, -1}, {"N", "T"}};

tlc::Shape fed(const tlc::TensorSpec& spec, const tlc::InputSizes& sizes) {
  return tlc::sample_feeds({spec}, sizes, 0).at(0).shape;
}

std::string refused(const tlc::TensorSpec& spec, const tlc::InputSizes& sizes) {
  return message_of<tlc::Error>([&] { tlc::sample_feeds({spec}, sizes, 0); });
}

void open_dimensions_are_the_batch_sizes_or_one() {
  CHECK((fed(kImage, {}) == tlc::Shape{1, 3, 8, 8}));
  CHECK((fed(kImage, {4, {}, {}}) == tlc::Shape{4, 3, 8, 8}));
  CHECK((fed(kTokens, {2, {{"T", 16}}, {}}) == tlc::Shape{2, 16}));
  CHECK((fed(kTokens, {2, {{"N", 3}}, {}}) == tlc::Shape{3, 1}));
  CHECK((fed(kTokens, {1, {}, {{"mask", {5, 6}}}}) == tlc::Shape{5, 6}));
  CHECK((tlc::assumed_sizes({kTokens}, {}) == std::vector<std::string>{"T"}));
  CHECK(tlc::assumed_sizes({kTokens}, {1, {{"T", 16}}, {}}).empty());
  CHECK(tlc::assumed_sizes({kTokens}, {1, {}, {{"mask", {5, 6}}}}).empty());
}

void a_shape_that_does_not_fit_is_refused() {
  CHECK(refused(kImage, {1, {}, {{"x", {1, 1, 8, 8}}}}) == "input x float32 [N, 3, 8, 8] cannot have shape 1x1x8x8");
  CHECK(contains(refused(kImage, {1, {}, {{"x", {1, 3, 8}}}}), "cannot have shape 1x3x8"));
  CHECK(refused(kImage, {1, {{"T", 2}}, {{"z", {1}}}}) ==
        "the model has no input or open dimension T, z: it takes x float32 [N, 3, 8, 8]");
  const tlc::TensorSpec closed{"x", tlc::DType::kFloat32, {1, 3}, {"", ""}};
  CHECK(contains(refused(closed, {2, {}, {}}), "cannot have shape 2x3"));
  CHECK(contains(refused(kImage, {2000000000, {}, {}}), "4 GiB"));
}

void noise_is_normal_and_the_same_for_a_seed() {
  const tlc::TensorSpec wide{"x", tlc::DType::kFloat32, {10000}};
  const tlc::Tensor one = tlc::sample_feeds({wide}, {}, 7).at(0);
  CHECK(one.bytes == tlc::sample_feeds({wide}, {}, 7).at(0).bytes);
  CHECK(one.bytes != tlc::sample_feeds({wide}, {}, 8).at(0).bytes);
  double sum = 0, squares = 0;
  for (size_t i = 0; i < 10000; ++i) {
    const double value = one.data<float>()[i];
    sum += value;
    squares += value * value;
  }
  CHECK(std::fabs(sum / 10000) < 0.05);
  CHECK(std::fabs(squares / 10000 - 1) < 0.05);
}

void halves_are_the_nearest() {
  const tlc::Tensor half = tlc::sample_feeds({{"x", tlc::DType::kFloat16, {1000}}}, {}, 7).at(0);
  const tlc::Tensor full = tlc::sample_feeds({{"x", tlc::DType::kFloat32, {1000}}}, {}, 7).at(0);
  for (size_t i = 0; i < 1000; ++i) {
    const uint16_t bits = half.data<uint16_t>()[i];
    const int exponent = bits >> 10 & 31;
    const double value = (bits & 0x8000 ? -1 : 1) * std::ldexp(1024 + (bits & 1023), exponent - 25);
    CHECK(std::fabs(value - static_cast<double>(full.data<float>()[i])) <= std::ldexp(1.0, exponent - 26) + 1e-6);
  }
}

void masks_are_ones_and_tokens_are_zeros() {
  const tlc::TensorSpec tokens{"tokens", tlc::DType::kInt32, {1, 2}}, flag{"flag", tlc::DType::kBool, {2}};
  const tlc::Feeds feeds = tlc::sample_feeds({kTokens, tokens, flag}, {1, {{"T", 2}}, {}}, 0);
  CHECK(feeds[0].data<int64_t>()[0] == 1 && feeds[0].data<int64_t>()[1] == 1);
  CHECK(feeds[1].data<int32_t>()[0] == 0 && feeds[1].data<int32_t>()[1] == 0);
  CHECK(feeds[2].bytes[0] == 1 && feeds[2].bytes[1] == 1);
}

tlc::Measured steady() {
  tlc::Measured measured{"m", {}, 8, 1.0, true, 40, 0, {}};
  for (int i = 0; i < 800; ++i) measured.samples_ns.push_back(1000000 + i % 7);
  return measured;
}

void what_makes_numbers_worth_less_is_said() {
  const auto codes = [](const tlc::Measured& measured) {
    std::string text;
    for (const tlc::Warning& warning : tlc::model_warnings(measured)) text += warning.code + " ";
    return text;
  };
  CHECK(codes(steady()).empty());
  tlc::Measured worse = steady();
  worse.samples_ns.resize(40);
  CHECK(codes(worse) == "too_few_samples ");
  CHECK(contains(tlc::model_warnings(worse)[0].message, "p90 needs 44, p95 needs 90, p99 needs 459"));
  worse = steady();
  worse.warmup_stable = false;
  CHECK(codes(worse) == "unstable ");
  worse = steady();
  for (size_t i = 8; i < worse.samples_ns.size(); ++i) worse.samples_ns[i] *= 2;
  CHECK(codes(worse) == "unstable ");
  worse = steady();
  worse.first_ms = 30;
  CHECK(codes(worse) == "first_run_slow ");
  worse = steady();
  worse.growth_bytes_per_run = 2000;
  CHECK(codes(worse) == "memory_grows ");
  worse = steady();
  worse.assumed = {"T"};
  CHECK(codes(worse) == "size_assumed ");
}

void what_the_machine_did_is_said() {
  tlc::Snapshot before, after;
  before.busy_s = before.steal_s = before.total_s = 0;
  after = before;
  after.total_s = 100;
  after.busy_s = 20;
  after.own_cpu_s = 10;
  CHECK(contains(tlc::machine_warnings(before, after, "/nowhere/").at(0).message,
                 "Other work took 10 % of the usable cores' time (limit 5 %)"));
  after.own_cpu_s = 20;
  CHECK(tlc::machine_warnings(before, after, "/nowhere/").empty());
  after.steal_s = 2;
  CHECK(contains(tlc::machine_warnings(before, after, "/nowhere/").at(0).message, "The host gave 9.1 %"));
  after.steal_s = 0;
  after.throttle_counts["cpu0"] = 3;
  CHECK(contains(tlc::machine_warnings(before, after, "/nowhere/").at(0).message, "its counter of cpu0 rose by 3"));
  before.quota_stops = 1;
  after.quota_stops = 5;
  CHECK(contains(tlc::machine_warnings(before, after, "/nowhere/").at(1).message, "stopped it in 4 periods"));
}

void layers_are_read_from_a_profile() {
  // A run to warm up and one that counts; the If holds an Add, and the session's own event is none of a node.
  std::istringstream trace(R"([
{"cat" : "Session","pid" :1,"tid" :1,"dur" :9,"ts" :1,"ph" : "X","name" :"model_run","args" : {}},
{"cat" : "Node","dur" :50,"ts" :10,"name" :"c_kernel_time","args" : {"op_name" : "Conv","node_index" : "0"}},
{"cat" : "Node","dur" :30,"ts" :100,"name" :"c_kernel_time","args" : {"op_name" : "Conv","node_index" : "0"}},
{"cat" : "Node","dur" :4,"ts" :140,"name" :"a_kernel_time","args" : {"op_name" : "Add","node_index" : "0"}},
{"cat" : "Node","dur" :10,"ts" :140,"name" :"i_kernel_time","args" : {"op_name" : "If","node_index" : "1"}}
])");
  const std::vector<tlc::LayerTime> layers = tlc::read_ort_profile(trace, 1);
  CHECK(layers.size() == 2);
  CHECK(layers.at(0).name == "c" && layers.at(0).kind == "Conv" && layers.at(0).ms == 0.03);
  CHECK(layers.at(1).name == "i" && layers.at(1).kind == "If" && layers.at(1).ratio == 0.25);
  std::istringstream broken("{\"cat\": \"Node\"}");
  CHECK(!message_of<tlc::Error>([&] { tlc::read_ort_profile(broken, 1); }).empty());
}

void write_file(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

void a_counter_of_energy_wraps_around() {
  char root[] = "/tmp/tlc_unit_test_XXXXXX";
  CHECK(mkdtemp(root) != nullptr);
  std::string zone = root;
  for (const char* part : {"/sys", "/class", "/powercap", "/intel-rapl:0"}) {
    zone += part;
    CHECK(mkdir(zone.c_str(), 0700) == 0);
  }
  write_file(zone + "/name", "package-0\n");
  write_file(zone + "/max_energy_range_uj", "10000000\n");
  write_file(zone + "/energy_uj", "9000000\n");
  const tlc::Meters meters = tlc::open_meters(std::string(root) + "/");
  CHECK(meters.found.size() == 1 && meters.problems.size() == 1);  // there is no INA3221
  tlc::Meter& meter = *meters.found.at(0);
  CHECK(meter.name() == "rapl package-0" && meter.joules() == 0);
  write_file(zone + "/energy_uj", "9500000\n");
  CHECK(meter.joules() == 0.5);
  write_file(zone + "/energy_uj", "500000\n");
  CHECK(meter.joules() == 1.5);
  CHECK(std::remove((zone + "/energy_uj").c_str()) == 0);
  CHECK(message_of<tlc::Error>([&] { meter.joules(); }) == "the energy counter rapl package-0 no longer answers");
  for (const char* name : {"/name", "/max_energy_range_uj"}) std::remove((zone + name).c_str());
  for (; zone.size() >= std::string(root).size(); zone.resize(zone.rfind('/'))) CHECK(rmdir(zone.c_str()) == 0);
}

void memory_is_that_of_this_process() {
  const int64_t before = tlc::peak_resident_bytes();
  const std::vector<char> block(64 << 20, 1);
  CHECK(tlc::peak_resident_bytes() - before > (48 << 20));
  CHECK(tlc::resident_bytes() > (64 << 20));
}

}  // namespace

int main() {
  percentiles_are_nearest_rank();
  bounds_are_order_statistics();
  growth_is_what_every_run_adds();
  blocks_are_a_multiple_of_the_feeds();
  options_are_read();
  help_and_version_need_no_model();
  a_wrong_option_names_value_and_limit();
  json_strings_always_parse();
  json_numbers_read_back_exactly();
  open_dimensions_are_the_batch_sizes_or_one();
  a_shape_that_does_not_fit_is_refused();
  noise_is_normal_and_the_same_for_a_seed();
  halves_are_the_nearest();
  masks_are_ones_and_tokens_are_zeros();
  what_makes_numbers_worth_less_is_said();
  what_the_machine_did_is_said();
  layers_are_read_from_a_profile();
  a_counter_of_energy_wraps_around();
  memory_is_that_of_this_process();
  return check::finish();
}
