// Whole files.
#ifndef TLC_NATIVE_FILES_H_
#define TLC_NATIVE_FILES_H_

#include <string>

namespace tlc {

// Return the bytes of a file; throws Error "cannot read PATH: reason".
std::string read_file(const std::string& path);

// Put `bytes` in the place of the file at `path` in one step: written beside it, flushed, renamed. On any failure what
// was there is untouched. Throws Error, naming the bytes needed where the disk is full.
void replace_file(const std::string& path, const std::string& bytes);

// Make the folder at `path` with those above it; throws Error.
void make_folders(const std::string& path);

}  // namespace tlc

#endif  // TLC_NATIVE_FILES_H_
