#include "bindings/providers.h"

#include <dlfcn.h>

#include <map>
#include <stdexcept>

namespace fusednn {
namespace {

std::map<std::string, const Provider*>& loaded() {
  static std::map<std::string, const Provider*> providers;
  return providers;
}

}  // namespace

void load_provider(const std::string& name, const std::string& path) {
  if (loaded_provider(name) != nullptr) return;
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw std::runtime_error(std::string("fusednn: ") + dlerror());
  const auto entry = reinterpret_cast<ProviderEntry>(dlsym(library, kProviderEntry));
  const Provider* provider = entry == nullptr ? nullptr : entry();
  if (provider == nullptr || name != provider->name) {
    throw std::runtime_error("fusednn: " + path + " is not the provider '" + name + "'");
  }
  loaded()[name] = provider;
}

const Provider* loaded_provider(const std::string& name) {
  const auto found = loaded().find(name);
  return found == loaded().end() ? nullptr : found->second;
}

}  // namespace fusednn
