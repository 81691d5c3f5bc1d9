// Stands before csrc/cuda/launch.h in the search for headers: a launch writes down its kernel, its shape and the bytes
// of its parameters, and is not made.
#pragma once

#include <cstdio>
#include <functional>
#include <tuple>
#include <utility>
#include <vector>

#include "api.h"
#include "cuda/kernel_name.h"
#include "cuda/primitives/device.h"

namespace fusednn::cuda {

inline thread_local const Witness* witness = nullptr;
inline thread_local bool told_as_replayed = false;

using Launches = std::vector<std::function<const char*()>>;
inline thread_local Launches* recorded = nullptr;

inline const char* settle() {
  return nullptr;
}

template <class T>
void print_parameter(const T& value, size_t& at) {
  for (; at % alignof(T) != 0; ++at) std::printf("00");
  const unsigned char* bytes = reinterpret_cast<const unsigned char*>(&value);
  for (size_t i = 0; i < sizeof(T); ++i, ++at) std::printf("%02x", static_cast<unsigned>(bytes[i]));
}

template <auto kKernel, class... Parameters, class... Arguments>
void print_launch(void (*)(Parameters...), const LaunchShape& s, Arguments&&... arguments) {
  const std::tuple<Parameters...> parameters{std::forward<Arguments>(arguments)...};
  std::printf("launch\t%s\t%u %u %u\t%u\t%zu\t%u\t", kernel_name<kKernel>(), s.grid[0], s.grid[1], s.grid[2], s.threads,
              s.shared_bytes, s.cluster);
  size_t at = 0;
  std::apply([&](const auto&... each) { (print_parameter(each, at), ...); }, parameters);
  std::printf("\n");
}

template <auto kKernel, class... Arguments>
const char* launch(const LaunchShape& shape, void*, Arguments&&... arguments) {
  print_launch<kKernel>(kKernel, shape, std::forward<Arguments>(arguments)...);
  return nullptr;
}

}  // namespace fusednn::cuda
