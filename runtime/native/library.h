// Libraries that are loaded while the program runs.
#ifndef TLC_NATIVE_LIBRARY_H_
#define TLC_NATIVE_LIBRARY_H_

#include <memory>
#include <string>
#include <vector>

namespace tlc {

// A shared library in this process. It stays loaded: runtimes keep threads and thread-local data, which crash when
// their code is gone.
class Library {
 public:
  // Load the first of `names` that loads; throws Error "cannot load WHAT: reason of the first" with `hint`.
  Library(const std::vector<std::string>& names, const std::string& what, const std::string& hint);

  // Return the address of a function; throws Error where the library lacks it.
  template <typename F>
  F* function(const char* name) const {
    return reinterpret_cast<F*>(address(name, true));
  }

  // Return the address of a function, or null.
  template <typename F>
  F* find(const char* name) const {
    return reinterpret_cast<F*>(address(name, false));
  }

  // Return the path of the file that was loaded.
  const std::string& path() const { return path_; }

 private:
  void* address(const char* name, bool required) const;

  void* handle_ = nullptr;
  std::string path_;
  std::string what_;
  std::string hint_;
};

// Return the names to try: `named` alone where it is not empty, else what the variable holds, else `usual`.
std::vector<std::string> library_names(const std::string& named, const char* variable,
                                       const std::vector<std::string>& usual);

}  // namespace tlc

#endif  // TLC_NATIVE_LIBRARY_H_
