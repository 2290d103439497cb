// Resident memory of this process.
#ifndef TLC_NATIVE_MEMORY_H_
#define TLC_NATIVE_MEMORY_H_

#include <cstdint>

namespace tlc {

// Return the resident size of this process now, bytes. Throws Error on systems without /proc.
int64_t resident_bytes();

// Return its peak so far, bytes; true to some 100 kB, since the kernel counts pages per core in batches. Throws Error.
int64_t peak_resident_bytes();

}  // namespace tlc

#endif  // TLC_NATIVE_MEMORY_H_
