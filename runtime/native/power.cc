#include "power.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "error.h"
#include "sysfs.h"

namespace tlc {

namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kInterval = std::chrono::milliseconds(50);

// Rails that together are a module's input, by board; the first set that is all there counts. Other rails lie behind
// these and would be counted twice. "Power Consumption Monitoring" in NVIDIA's Jetson Linux Developer Guide.
const std::vector<std::vector<std::string>> kTotals = {
    {"VDD_IN"},                                     // TX2, Xavier NX, Orin NX, Orin Nano
    {"POM_5V_IN"},                                  // Nano
    {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"},   // AGX Orin
    {"GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"},  // AGX Xavier
};

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

Error silent(const std::string& name) {
  return Error("the energy counter " + name + " no longer answers", "Measure again; without it no energy is known.");
}

// One domain of the CPU's own counter. It wraps around, after about an hour at full load: it is read before that.
// https://docs.kernel.org/power/powercap/powercap.html
class RaplMeter : public Meter {
 public:
  RaplMeter(const std::string& zone, int64_t now_uj, int64_t range_uj)
      : name_("rapl " + read_text(zone + "/name").value_or(base_name(zone))),
        counter_(zone + "/energy_uj"),
        range_uj_(range_uj),
        last_uj_(now_uj) {}

  const std::string& name() const override { return name_; }

  double joules() override {
    const auto now_uj = read_integer(counter_);
    if (!now_uj) throw silent(name_);
    total_uj_ += *now_uj - last_uj_ + (*now_uj < last_uj_ ? range_uj_ : 0);
    last_uj_ = *now_uj;
    return static_cast<double>(total_uj_) / 1e6;
  }

 private:
  std::string name_;
  std::string counter_;
  int64_t range_uj_;
  int64_t last_uj_;
  int64_t total_uj_ = 0;
};

// Power of one rail: the product of two files in millivolts and milliamperes, or one file in milliwatts.
struct Rail {
  std::string millivolts;
  std::string milliamperes;
  std::string milliwatts;

  std::optional<double> watts() const {
    if (!milliwatts.empty()) {
      const auto value = read_integer(milliwatts);
      return value ? std::optional<double>(static_cast<double>(*value) / 1e3) : std::nullopt;
    }
    const auto volts = read_integer(millivolts), amperes = read_integer(milliamperes);
    if (!volts || !amperes) return std::nullopt;
    return static_cast<double>(*volts) * static_cast<double>(*amperes) / 1e6;
  }
};

// Sensors of power, read every 50 ms by a thread, added up and integrated by the trapezoidal rule.
class SampledMeter : public Meter {
 public:
  SampledMeter(std::string name, std::vector<Rail> rails) : name_(std::move(name)), rails_(std::move(rails)) {
    sample();
    thread_ = std::thread([this] {
      std::unique_lock<std::mutex> lock(stop_mutex_);
      while (!stopped_.wait_for(lock, kInterval, [this] { return stop_; })) sample();
    });
  }

  ~SampledMeter() override {
    {
      const std::lock_guard<std::mutex> lock(stop_mutex_);
      stop_ = true;
    }
    stopped_.notify_all();
    thread_.join();
  }

  const std::string& name() const override { return name_; }

  double joules() override {
    if (!sample()) throw silent(name_);
    const std::lock_guard<std::mutex> lock(mutex_);
    return joules_;
  }

 private:
  bool sample() {
    const std::lock_guard<std::mutex> lock(mutex_);  // around the reading too: samples are in the order of their times
    double watts = 0;
    for (const Rail& rail : rails_) {
      const auto own = rail.watts();
      if (!own) return false;
      watts += *own;
    }
    const auto now = Clock::now();
    if (begun_) joules_ += std::chrono::duration<double>(now - last_).count() * (watts + last_watts_) / 2;
    begun_ = true;
    last_ = now;
    last_watts_ = watts;
    return true;
  }

  std::string name_;
  std::vector<Rail> rails_;
  std::mutex mutex_;
  bool begun_ = false;
  Clock::time_point last_;
  double last_watts_ = 0;
  double joules_ = 0;
  std::mutex stop_mutex_;
  std::condition_variable stopped_;
  bool stop_ = false;
  std::thread thread_;
};

// From hwmon (JetPack 5 and later) or iio (JetPack 4), by name of the rail.
std::map<std::string, Rail> rails(const std::string& root) {
  const std::string devices = root + "sys/bus/i2c/devices/";
  std::map<std::string, Rail> found;
  for (const std::string& label : matching(devices + "*/hwmon/hwmon*/in[0-9]*_label")) {
    const std::string folder = label.substr(0, label.rfind('/') + 1), file = base_name(label);
    const std::string channel = file.substr(2, file.size() - 2 - std::strlen("_label"));
    const Rail rail{folder + "in" + channel + "_input", folder + "curr" + channel + "_input", ""};
    const std::string name = read_text(label).value_or("NC");
    if (name != "NC" && rail.watts()) found[name] = rail;  // channel 7, the sum of the shunts, has no current
  }
  for (const std::string& label : matching(devices + "*/iio:device*/rail_name_*")) {
    const std::string folder = label.substr(0, label.rfind('/') + 1);
    const std::string channel = base_name(label).substr(std::strlen("rail_name_"));
    const Rail rail{"", "", folder + "in_power" + channel + "_input"};
    const std::string name = read_text(label).value_or("NC");
    if (name != "NC" && rail.watts()) found[name] = rail;
  }
  return found;
}

std::string joined(const std::vector<std::string>& names, const char* separator) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : separator) + name;
  return text;
}

void add_rapl(const std::string& root, Meters& meters) {
  bool any = false;
  for (const std::string& zone : matching(root + "sys/class/powercap/intel-rapl:*")) {
    if (base_name(zone).find(':') != base_name(zone).rfind(':')) continue;  // a part of a package
    any = true;
    const std::string counter = zone + "/energy_uj";
    const auto now_uj = read_integer(counter), range_uj = read_integer(zone + "/max_energy_range_uj");
    if (now_uj && range_uj) {
      meters.found.push_back(std::make_unique<RaplMeter>(zone, *now_uj, *range_uj));
    } else if (access(counter.c_str(), R_OK) != 0 && errno == EACCES) {
      meters.problems.push_back("RAPL: " + counter + " is for root alone; run as root, or `sudo chmod o+r` that file");
    } else {
      meters.problems.push_back("RAPL: " + counter + " cannot be read");
    }
  }
  if (!any) {
    meters.problems.push_back(
        "RAPL: there is no sys/class/powercap/intel-rapl:0; virtual machines and most ARM boards have none");
  }
}

void add_module(const std::string& root, Meters& meters) {
  const std::map<std::string, Rail> known = rails(root);
  for (const std::vector<std::string>& total : kTotals) {
    const bool all = std::all_of(total.begin(), total.end(), [&](const auto& name) { return known.count(name) != 0; });
    if (!all) continue;
    std::vector<Rail> own;
    for (const std::string& name : total) own.push_back(known.at(name));
    meters.found.push_back(std::make_unique<SampledMeter>("ina3221 " + joined(total, "+"), own));
    return;
  }
  std::vector<std::string> names;
  for (const auto& rail : known) names.push_back(rail.first);
  meters.problems.push_back(names.empty() ? "INA3221: there is no such sensor; it belongs to Jetson modules"
                                          : "INA3221: none of the rails " + joined(names, ", ") +
                                                " is known as the input of a module");
}

}  // namespace

Meters open_meters(const std::string& root) {
  Meters meters;
  add_rapl(root, meters);
  add_module(root, meters);
  return meters;
}

double mean_watts(Meter& meter, const std::function<void()>& step) {
  // The clock is read behind the meter each time, so that what lies between the two cancels.
  const double before = meter.joules();
  const auto start = Clock::now();
  step();
  const double after = meter.joules();
  return (after - before) / seconds_since(start);
}

}  // namespace tlc
