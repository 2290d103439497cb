#include "library.h"

#include <dlfcn.h>
#ifdef __linux__
#include <link.h>
#endif

#include <cstdlib>

#include "error.h"

namespace tlc {

namespace {

// Return the path of the file that a handle is of; `name` where the system does not tell.
std::string path_of(void* handle, const std::string& name) {
#ifdef __linux__
  struct link_map* map = nullptr;
  if (dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map != nullptr && map->l_name[0] != '\0') return map->l_name;
#else
  static_cast<void>(handle);
#endif
  return name;
}

}  // namespace

Library::Library(const std::vector<std::string>& names, const std::string& what, const std::string& hint)
    : what_(what), hint_(hint) {
  std::string reason;
  for (const std::string& name : names) {
    handle_ = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle_ != nullptr) {
      path_ = path_of(handle_, name);
      return;
    }
    const char* message = dlerror();
    if (reason.empty() && message != nullptr) reason = message;
  }
  throw Error("cannot load " + what + ": " + reason, hint);
}

void* Library::address(const char* name, bool required) const {
  void* found = dlsym(handle_, name);
  if (found == nullptr && required) throw Error(path_ + " has no " + name + ", so it is not " + what_, hint_);
  return found;
}

std::vector<std::string> library_names(const std::string& named, const char* variable,
                                       const std::vector<std::string>& usual) {
  if (!named.empty()) return {named};
  const char* value = std::getenv(variable);
  if (value != nullptr && *value != '\0') return {value};
  return usual;
}

}  // namespace tlc
