// Counters of energy: RAPL on x86, INA3221 sensors on Jetson modules, as runtime/power.py reads them.
#ifndef TLC_NATIVE_POWER_H_
#define TLC_NATIVE_POWER_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace tlc {

// Energy of the whole counter's domain, other work on it included.
struct Energy {
  std::string counter;  // such as "rapl package-0", "ina3221 VDD_IN"
  double joules_per_run;
  double watts;
  double idle_watts;  // before anything ran
  double seconds;
};

// A counter; two readings, and the difference is what its domain took between them.
class Meter {
 public:
  virtual ~Meter() = default;
  virtual const std::string& name() const = 0;

  // Return the energy since some moment before, joules; it never falls. Throws Error when it can no longer be read.
  virtual double joules() = 0;
};

struct Meters {
  std::vector<std::unique_ptr<Meter>> found;
  std::vector<std::string> problems;  // a sentence for each kind that this machine does not offer
};

// Return the counters that this machine offers; sys/ lies in `root`, which ends with a slash.
Meters open_meters(const std::string& root = "/");

// Return the mean power while `step` runs.
double mean_watts(Meter& meter, const std::function<void()>& step);

}  // namespace tlc

#endif  // TLC_NATIVE_POWER_H_
