// The machine and the software that a measurement was made with: the fields of runtime/environment.py.
#ifndef TLC_NATIVE_ENVIRONMENT_H_
#define TLC_NATIVE_ENVIRONMENT_H_

#include <map>
#include <string>

#include "json_object.h"

namespace tlc {

// Return what decides how fast this machine runs a model; what it does not tell is null. proc/, sys/, etc/, run/ and
// var/ lie in `root`, which ends with a slash. `versions` are those of the libraries that run models.
JsonObject environment(const std::map<std::string, std::string>& versions, const std::string& root = "/");

// Return the facts of an environment that must be equal for stored numbers to be comparable, as machine_identity() of
// runtime/environment.py.
JsonObject machine_identity(const JsonObject& environment);

}  // namespace tlc

#endif  // TLC_NATIVE_ENVIRONMENT_H_
