#include "runner.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <ctime>
#include <exception>
#include <mutex>
#include <thread>

#include "memory.h"

namespace tlc {

namespace {

using Clock = std::chrono::steady_clock;

// The constants of runtime/worker.py.
constexpr double kWarmMs = 200;
constexpr size_t kWarmRuns = 20;
constexpr double kWarmLongestMs = 1000;
constexpr double kStableRatio = 0.02;
constexpr int kBlockRuns = 8;
constexpr double kBlockShortestMs = 4;
constexpr double kBlockLongestMs = 200;
constexpr double kLeadInLongestMs = 50;
constexpr int kOverheadRuns = 1000;
constexpr double kNsPerMs = 1e6;

int64_t ns_since(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
}

int64_t process_cpu_ns() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return int64_t{1000000000} * time.tv_sec + time.tv_nsec;
}

bool is_stable(const SamplesNs& samples) {
  if (samples.size() < 2 * kWarmRuns) return false;
  const auto end = samples.end();
  const double before = median_ns({end - 2 * kWarmRuns, end - kWarmRuns});
  const double after = median_ns({end - kWarmRuns, end});
  return std::fabs(after - before) < kStableRatio * before;
}

// Does nothing, behind the same virtual call as a run.
class Nothing : public Context {
 public:
  void run(const std::vector<Tensor>&, std::vector<Tensor>&) override {}
};

int64_t overhead_ns() {
  const std::unique_ptr<Context> nothing = std::make_unique<Nothing>();
  const std::vector<Tensor> feeds;
  std::vector<Tensor> outputs;
  SamplesNs samples;
  samples.reserve(kOverheadRuns);
  for (int i = 0; i < kOverheadRuns; ++i) {
    const auto start = Clock::now();
    nothing->run(feeds, outputs);
    samples.push_back(ns_since(start));
  }
  return static_cast<int64_t>(median_ns(samples));
}

}  // namespace

int block_runs(double p50_ms, int feeds) {
  const int fewest = std::max(1, static_cast<int>(std::min<double>(kBlockRuns, kBlockLongestMs / p50_ms)));
  const int runs = std::max(fewest, static_cast<int>(std::ceil(kBlockShortestMs / p50_ms)));
  return (runs + feeds - 1) / feeds * feeds;
}

BlockRunner::BlockRunner(const RunRequest& request) : source_(request.source) {
  opened_.runtime = load_runtime(request.source.options);
  opened_.empty_bytes = resident_bytes();
  opened_.empty_peak_bytes = peak_resident_bytes();
  const auto start = Clock::now();
  models_.push_back(open_source(request.source));
  opened_.load_ns = ns_since(start);
  for (int i = 1; i < request.streams; ++i) models_.push_back(open_source(request.source));
  opened_.loaded_bytes = resident_bytes();
  for (const auto& model : models_) contexts_.push_back(model->make_context());
  outputs_.resize(models_.size());

  const std::vector<TensorSpec>& inputs = models_[0]->inputs();
  choose_feeds(request, inputs);
  for (size_t i = 0; i < inputs.size(); ++i) opened_.shapes.emplace_back(inputs[i].name, feeds_[0][i].shape);

  const auto first = Clock::now();
  run(0, feeds_[0]);
  opened_.first_ns = ns_since(first);
  for (size_t stream = 1; stream < contexts_.size(); ++stream) run(stream, feeds_[0]);
  opened_.overhead_ns = overhead_ns();
}

void BlockRunner::choose_feeds(const RunRequest& request, const std::vector<TensorSpec>& inputs) {
  if (!request.feeds.empty()) {
    feeds_ = read_feeds(request.feeds, inputs);
    return;
  }
  opened_.assumed = assumed_sizes(inputs, request.sizes);
  const InputSizes& sizes = request.sizes;
  const bool free = sizes.batch == 1 && sizes.sizes.empty() && sizes.shapes.empty();
  if (free && !opened_.assumed.empty() && request.source.bundle && !request.source.bundle->golden().empty()) {
    // Of texts, the golden ones have lengths that occur; made up, they would have one token.
    const Bundle& bundle = *request.source.bundle;
    for (const Golden& golden : bundle.golden()) {
      Feeds feeds;
      for (const std::string& member : golden.inputs) feeds.push_back(bundle.read_tensor(member));
      feeds_.push_back(std::move(feeds));
    }
    opened_.assumed.clear();
    return;
  }
  feeds_.push_back(sample_feeds(inputs, sizes, request.seed));
}

Warmed BlockRunner::warm() {
  SamplesNs samples;
  const auto start = Clock::now();
  bool stable = false;
  while (true) {
    time_runs(0, samples.size(), 1, samples);
    const double past_ms = static_cast<double>(ns_since(start)) / kNsPerMs;
    stable = is_stable(samples);
    if (samples.size() >= 2 * kWarmRuns && past_ms >= kWarmMs && stable) break;
    if (past_ms >= kWarmLongestMs && samples.size() >= 2) break;
  }
  const auto window = static_cast<std::ptrdiff_t>(std::min(samples.size(), kWarmRuns));
  const double p50_ms = median_ns({samples.end() - window, samples.end()}) / kNsPerMs;
  return {static_cast<int>(samples.size()), stable, block_runs(p50_ms, static_cast<int>(feeds_.size())),
          p50_ms <= kLeadInLongestMs};
}

Block BlockRunner::block(int runs, bool lead_in) {
  std::vector<SamplesNs> samples(contexts_.size());
  for (SamplesNs& own : samples) own.reserve(static_cast<size_t>(runs));
  if (lead_in) {
    for (size_t stream = 0; stream < contexts_.size(); ++stream) run(stream, feeds_.back());
  }
  Block block;
  const int64_t cpu_ns = process_cpu_ns();
  const auto start = Clock::now();
  if (contexts_.size() == 1) {
    time_runs(0, 0, runs, samples[0]);
  } else {
    time_at_once(runs, samples);
  }
  block.wall_ns = ns_since(start);
  block.cpu_ns = process_cpu_ns() - cpu_ns;
  for (const SamplesNs& own : samples) block.samples_ns.insert(block.samples_ns.end(), own.begin(), own.end());
  block.resident_bytes = resident_bytes();
  block.peak_bytes = peak_resident_bytes();
  return block;
}

RanFor BlockRunner::run_for(double seconds) {
  const auto start = Clock::now();
  int64_t runs = 0;
  while (static_cast<double>(ns_since(start)) < seconds * 1e9) {
    run(0, feeds_[static_cast<size_t>(runs) % feeds_.size()]);
    ++runs;
  }
  return {runs, static_cast<double>(ns_since(start)) / 1e9};
}

void BlockRunner::time_runs(size_t stream, size_t first, int runs, SamplesNs& samples) {
  size_t place = first % feeds_.size();
  for (int i = 0; i < runs; ++i) {
    const Feeds& feeds = feeds_[place];
    const auto start = Clock::now();
    run(stream, feeds);
    samples.push_back(ns_since(start));
    place = place + 1 == feeds_.size() ? 0 : place + 1;
  }
}

void BlockRunner::time_at_once(int runs, std::vector<SamplesNs>& samples) {
  std::mutex mutex;
  std::condition_variable changed;
  size_t waiting = 0;
  std::exception_ptr error;
  const auto work = [&](size_t stream) {
    try {
      {
        std::unique_lock<std::mutex> lock(mutex);
        if (++waiting == contexts_.size()) changed.notify_all();
        changed.wait(lock, [&] { return waiting == contexts_.size(); });
      }
      time_runs(stream, 0, runs, samples[stream]);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  for (size_t stream = 0; stream < contexts_.size(); ++stream) threads.emplace_back(work, stream);
  for (std::thread& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace tlc
