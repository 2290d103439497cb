// What the native runtime reads of the machine whose proc/ and sys/ lie in a folder, as JSON: tlc_machine_probe FOLDER/
#include <chrono>
#include <cstdio>
#include <thread>

#include "environment.h"
#include "health.h"
#include "json_object.h"
#include "machine.h"
#include "power.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const std::string root = argv[1];
  const tlc::JsonObject environment = tlc::environment({{"onnxruntime", "1.31.1"}}, root);
  const tlc::Snapshot now = tlc::snapshot(root);
  tlc::JsonObject snapshot, meters, probe;
  snapshot.add("throttle_counts", now.throttle_counts)
      .add("quota_stops", now.quota_stops)
      .add("temperatures_c", now.temperatures_c)
      .add("trips_c", now.trips_c)
      .add("busy_s", now.busy_s)
      .add("steal_s", now.steal_s)
      .add("total_s", now.total_s);
  const tlc::Meters found = tlc::open_meters(root);
  for (const auto& meter : found.found) {
    meters.add(meter->name(),
               tlc::mean_watts(*meter, [] { std::this_thread::sleep_for(std::chrono::milliseconds(400)); }));
  }
  probe.add("environment", environment)
      .add("identity", tlc::machine_identity(environment))
      .add("snapshot", snapshot)
      .add("watts", meters)
      .add("problems", found.problems);
  std::printf("%s\n", probe.text().c_str());
  return 0;
}
