// Memory of this process.
#ifndef TLC_NATIVE_MEMORY_H_
#define TLC_NATIVE_MEMORY_H_

#include <cstdint>
#include <optional>

namespace tlc {

// Return the peak resident memory of this process so far, in bytes (VmHWM); none where the system does not tell.
std::optional<int64_t> peak_resident_bytes();

}  // namespace tlc

#endif  // TLC_NATIVE_MEMORY_H_
