// Vectors of the unit's instruction set, and loads and stores that convert from and to the tensors' dtype.
// Included by isa/all.h alone, after the target pragma; see there.

namespace fusednn::cpu::FUSEDNN_ISA {

#define FUSEDNN_FN inline __attribute__((always_inline))

template <class A>
struct Lanes;

template <>
struct Lanes<float> {
  typedef float V __attribute__((vector_size(FUSEDNN_VECTOR_BYTES)));
  typedef int32_t I __attribute__((vector_size(FUSEDNN_VECTOR_BYTES)));
  typedef uint32_t U __attribute__((vector_size(FUSEDNN_VECTOR_BYTES)));
  typedef uint16_t Half __attribute__((vector_size(FUSEDNN_VECTOR_BYTES / 2)));
  static constexpr int kCount = FUSEDNN_VECTOR_BYTES / 4;
};

template <>
struct Lanes<double> {
  typedef double V __attribute__((vector_size(FUSEDNN_VECTOR_BYTES)));
  typedef int64_t I __attribute__((vector_size(FUSEDNN_VECTOR_BYTES)));
  typedef uint64_t U __attribute__((vector_size(FUSEDNN_VECTOR_BYTES)));
  static constexpr int kCount = FUSEDNN_VECTOR_BYTES / 8;
};

template <class A>
using Vec = typename Lanes<A>::V;

template <class To, class From>
FUSEDNN_FN To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

// How a storage type's bits become lanes and back.
template <class T>
struct Codec {  // float, double: as they are
  using Bits = Vec<T>;
  static FUSEDNN_FN Vec<T> decode(Bits bits) { return bits; }
  static FUSEDNN_FN Bits encode(Vec<T> v) { return v; }
};

template <>
struct Codec<BFloat16> {
  using L = Lanes<float>;
  using Bits = L::Half;
  static FUSEDNN_FN L::V decode(Bits bits) { return bit_cast<L::V>(__builtin_convertvector(bits, L::U) << 16); }
  // To nearest, ties to even; a NaN stays one.
  static FUSEDNN_FN Bits encode(L::V v) {
    const L::U u = bit_cast<L::U>(v);
    const L::U rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    const L::U quiet = (u >> 16) | 0x40u;
    return __builtin_convertvector(v == v ? rounded : quiet, Bits);
  }
};

template <>
struct Codec<Float16> {
  using L = Lanes<float>;
  using Bits = L::Half;
  static FUSEDNN_FN L::V decode(Bits bits) {
    const L::U u = __builtin_convertvector(bits, L::U);
    const L::U magnitude = (u & 0x7fffu) << 13;
    // The exponent's bias differs by 112; the multiplication also makes denormals right.
    const L::U finite = bit_cast<L::U>(bit_cast<L::V>(magnitude) * 0x1p112f);
    const L::U special = magnitude | 0x7f800000u;  // inf and NaN
    return bit_cast<L::V>((magnitude >= 0x0f800000u ? special : finite) | ((u & 0x8000u) << 16));
  }
  // To nearest, ties to even; beyond the largest number inf; a NaN stays one.
  static FUSEDNN_FN Bits encode(L::V v) {
    const L::U u = bit_cast<L::U>(v);
    const L::U magnitude = u & 0x7fffffffu;
    const L::U normal = (magnitude + (0xfffu - (112u << 23)) + ((magnitude >> 13) & 1u)) >> 13;
    // Adding 0.5 lets the hardware round a denormal at its last bit.
    const L::U denormal = bit_cast<L::U>(bit_cast<L::V>(magnitude) + 0.5f) - 0x3f000000u;
    L::U bits = magnitude < 0x38800000u ? denormal : normal;
    const L::U infinite = (bits & 0u) + 0x7c00u;
    bits = magnitude >= 0x477ff000u ? infinite : bits;
    bits = magnitude > 0x7f800000u ? infinite + 0x200u : bits;
    return __builtin_convertvector(bits | ((u >> 16) & 0x8000u), Bits);
  }
};

template <class T>
FUSEDNN_FN Vec<AccOf<T>> load(const T* p) {
  typename Codec<T>::Bits bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return Codec<T>::decode(bits);
}

template <class T>
FUSEDNN_FN void store(T* p, Vec<AccOf<T>> v) {
  const typename Codec<T>::Bits bits = Codec<T>::encode(v);
  __builtin_memcpy(p, &bits, sizeof bits);
}

// The units of one block: full, or the last ones of a layer, whose missing lanes read as zero and are never written.
template <bool kFull>
struct Block {
  int lanes;

  template <class T>
  FUSEDNN_FN Vec<AccOf<T>> load(const T* p) const {
    if constexpr (kFull) return FUSEDNN_ISA::load(p);
    typename Codec<T>::Bits bits{};
    __builtin_memcpy(&bits, p, sizeof(T) * static_cast<size_t>(lanes));
    return Codec<T>::decode(bits);
  }

  template <class T>
  FUSEDNN_FN void store(T* p, Vec<AccOf<T>> v) const {
    if constexpr (kFull) return FUSEDNN_ISA::store(p, v);
    const typename Codec<T>::Bits bits = Codec<T>::encode(v);
    __builtin_memcpy(p, &bits, sizeof(T) * static_cast<size_t>(lanes));
  }
};

// What remains of v after it was stored as T: this is the value that the next step sees.
template <class T>
FUSEDNN_FN Vec<AccOf<T>> rounded(Vec<AccOf<T>> v) {
  return Codec<T>::decode(Codec<T>::encode(v));
}

// One element: for the rare copies of whole states.
template <class T>
FUSEDNN_FN AccOf<T> load_one(const T* p) {
  return Block<false>{1}.load(p)[0];
}
template <class T>
FUSEDNN_FN void store_one(T* p, AccOf<T> x) {
  Block<false>{1}.store(p, x + Vec<AccOf<T>>{});
}

}  // namespace fusednn::cpu::FUSEDNN_ISA
