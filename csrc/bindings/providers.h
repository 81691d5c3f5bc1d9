// The providers beside the CPU's: shared libraries without torch, loaded when asked for.
#pragma once

#include <string>

#include "api.h"

namespace fusednn {

// name: "cuda" or "emulated". Throws std::runtime_error where the library cannot be loaded or is another one.
void load_provider(const std::string& name, const std::string& path);

// Null: not loaded.
const Provider* loaded_provider(const std::string& name);

void register_cuda_operators();  // in torch_ops.cpp; once, after "cuda" was loaded

}  // namespace fusednn
