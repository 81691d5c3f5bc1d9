// What products multiply. Included after vec.h.
//
// Lane by lane a number times a number; or, for bfloat16 where the instruction set has their dot product, a pair of
// neighbours along k times such a pair. Sums are of the accumulator's type either way.

namespace fusednn::cpu::FUSEDNN_ISA {

// Of products whose lanes hold an N.
template <class N>
struct Lane {
  using Sum = N;
  static constexpr int kWidth = 1;  // elements of k

  // `count` elements of a row, or as many as make a vector.
  template <class T>
  static FUSEDNN_FN Vec<Sum> along(const T* row, long count) {
    return count >= Lanes<Sum>::kCount ? load(row) : Block<false>{static_cast<int>(count)}.load(row);
  }
  // `units` neighbours of the rows, `row` apart, that make one lane of k; `left` of them exist.
  template <class T>
  static FUSEDNN_FN Vec<Sum> across(const T* first, long, long, long units) {
    return along(first, units);
  }
  static FUSEDNN_FN Vec<Sum> read(const N* p) { return load(p); }
  static FUSEDNN_FN Vec<Sum> multiply_add(N x, Vec<Sum> v, Vec<Sum> sum) { return sum + x * v; }
};

// How the states of tensors of dtype T lie that products take, and what lanes hold of them.
template <class T>
struct Factor {
  using State = AccOf<T>;
  using Number = AccOf<T>;
};

#if defined(FUSEDNN_BFLOAT16_PAIRS)

struct Pair {
  BFloat16 of[2];
};

template <>
struct Lane<Pair> {
  using Sum = float;
  using L = Lanes<float>;
  static constexpr int kWidth = 2;

  static FUSEDNN_FN L::V along(const BFloat16* row, long count) { return first<L::V>(row, count); }
  static FUSEDNN_FN L::V across(const BFloat16* first, long row, long left, long units) {
    return bit_cast<L::V>(bits(first, units) | (left > 1 ? bits(first + row, units) << 16 : L::U{}));
  }
  static FUSEDNN_FN L::V read(const Pair* p) {
    L::V v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static FUSEDNN_FN L::V multiply_add(Pair x, L::V v, L::V sum) {
    const L::U all = bit_cast<uint32_t>(x) + L::U{};
    return _mm512_dpbf16_ps(sum, bit_cast<__m512bh>(all), bit_cast<__m512bh>(v));
  }

 private:
  // `count` numbers, or as many as a V holds.
  template <class V>
  static FUSEDNN_FN V first(const BFloat16* p, long count) {
    V v{};
    const size_t bytes = static_cast<size_t>(count) * sizeof *p;
    if (bytes >= sizeof v) {
      __builtin_memcpy(&v, p, sizeof v);
    } else {
      __builtin_memcpy(&v, p, bytes);
    }
    return v;
  }
  static FUSEDNN_FN L::U bits(const BFloat16* p, long count) {
    return __builtin_convertvector(first<L::Half>(p, count), L::U);
  }
};

template <>
struct Factor<BFloat16> {
  using State = BFloat16;
  using Number = Pair;
};

#endif

}  // namespace fusednn::cpu::FUSEDNN_ISA
