// The storage types of tensors and the type each one computes in.
#pragma once

#include <cstdint>

namespace fusednn {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};

template <class T>
using AccOf = typename Accumulator<T>::type;

}  // namespace fusednn
