// The name of a kernel, as the machine-code table has it: step_forward<Lstm, Bf16, false>.
#pragma once

#include <cxxabi.h>

#include <cstdlib>
#include <string>
#include <typeinfo>

namespace fusednn::cuda {

template <auto kKernel>
struct Named {};

// "...Named<&(void space::kernel<space::Cell>(parameters))>" to "kernel<Cell>".
inline std::string short_kernel_name(const char* mangled) {
  char* demangled = abi::__cxa_demangle(mangled, nullptr, nullptr, nullptr);
  std::string text = demangled;
  std::free(demangled);
  text.erase(0, text.find("&(void ") + 7);
  int depth = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    depth += (text[i] == '<') - (text[i] == '>');
    if (text[i] == '(' && depth == 0) text.resize(i);
  }
  for (const char* space : {"fusednn::", "cuda::", "cells::"}) {
    for (size_t at; (at = text.find(space)) != std::string::npos;) text.erase(at, std::string(space).size());
  }
  return text;
}

template <auto kKernel>
const char* kernel_name() {
  static const std::string name = short_kernel_name(typeid(Named<kKernel>).name());
  return name.c_str();
}

}  // namespace fusednn::cuda
