// Weights in the order in which the product reads them. Included after factors.h.
//
// A panel belongs to one block of as many units as a vector has lanes: for each k, or pair of neighbours, one vector a
// gate. What lies beyond the last unit or the last k is zero.

namespace fusednn::cpu::FUSEDNN_ISA {

template <class N>
struct Panels {
  static constexpr int kWidth = Lane<N>::kWidth, kLanes = Lanes<typename Lane<N>::Sum>::kCount;

  N* data;
  long blocks;  // of units
  long k;       // length of the sums, in elements
  int gates;
  long pad = 0;  // vectors between one panel and the next

  long depth() const { return (k + kWidth - 1) / kWidth; }  // vectors a unit and gate
  long panel_size() const { return (depth() * gates + pad) * kLanes; }
  N* panel(long block) const { return data + block * panel_size(); }
  Panels of_no_term() const { return {data, blocks, 0, gates, pad}; }  // sums that end where they start
  size_t bytes() const { return sizeof(N) * static_cast<size_t>(blocks * panel_size()); }
};

// Padded: products read several panels side by side, and with a power of two between them they would fall into the same
// few sets of the cache.
template <class N>
Panels<N> take_panels(Workspace& space, long units, long k, int gates) {
  Panels<N> panels{nullptr, round_up(units, Panels<N>::kLanes) / Panels<N>::kLanes, k, gates, 1};
  panels.data = static_cast<N*>(space.take(panels.bytes()));
  return panels;
}

template <int... I>
struct Indices {};
template <int N, int... I>
struct CountTo : CountTo<N - 1, N - 1, I...> {};
template <int... I>
struct CountTo<0, I...> {
  using type = Indices<I...>;
};

template <class V, int... I>
FUSEDNN_FN V zip_low(V a, V b, Indices<I...>) {
  constexpr int n = sizeof...(I);
  return __builtin_shufflevector(a, b, (I / 2 + (I % 2) * n)...);
}
template <class V, int... I>
FUSEDNN_FN V zip_high(V a, V b, Indices<I...>) {
  constexpr int n = sizeof...(I);
  return __builtin_shufflevector(a, b, (n / 2 + I / 2 + (I % 2) * n)...);
}

// Lane j of row i goes to lane i of row j, by log2(N) rounds of a perfect shuffle.
template <class V, int N>
FUSEDNN_FN void transpose(V (&rows)[N]) {
  typename CountTo<N>::type indices;
#pragma GCC unroll 8
  for (int round = 1; round < N; round *= 2) {
    V out[N];
#pragma GCC unroll 16
    for (int i = 0; i < N / 2; ++i) {
      out[2 * i] = zip_low(rows[i], rows[i + N / 2], indices);
      out[2 * i + 1] = zip_high(rows[i], rows[i + N / 2], indices);
    }
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) rows[i] = out[i];
  }
}

// Lane j becomes the sum of the lanes of row j; the rows are used up. The rounds are those of the transposition.
template <class V, int N>
FUSEDNN_FN V sums_across(V (&rows)[N]) {
  typename CountTo<N>::type indices;
#pragma GCC unroll 8
  for (int half = N / 2; half > 0; half /= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < half; ++i) {
      rows[i] = zip_low(rows[i], rows[i + half], indices) + zip_high(rows[i], rows[i + half], indices);
    }
  }
  return rows[0];
}

// The panel of a block for h W^T: sums run along the rows of w, which lie `row` apart; gate g of unit u is row
// g * units + u of w.
template <class T, class N>
void pack_rows(const T* w, long row, long units, long block, const Panels<N>& to, N* panel) {
  constexpr int n = Panels<N>::kLanes, kWidth = Panels<N>::kWidth;
  using V = Vec<typename Lane<N>::Sum>;
  const long u0 = block * n, count = units - u0 < n ? units - u0 : n;
  for (int g = 0; g < to.gates; ++g) {
    const T* from = w + (g * units + u0) * row;
    for (long k0 = 0; k0 < to.depth(); k0 += n) {
      V rows[n];
      for (int i = 0; i < n; ++i) {
        rows[i] = i < count ? Lane<N>::along(from + i * row + k0 * kWidth, to.k - k0 * kWidth) : V{};
      }
      transpose(rows);
      N* out = panel + (k0 * to.gates + g) * n;
      for (int i = 0; i < n && k0 + i < to.depth(); ++i) {
        __builtin_memcpy(out + i * to.gates * n, &rows[i], sizeof rows[i]);
      }
    }
  }
}

// For d W: sums run down the columns of w, which has `units` columns and rows that lie `row` apart. One "gate".
template <class T, class N>
__attribute__((noinline)) void pack_columns(const T* w, long row, long units, long block, const Panels<N>& to,
                                            N* panel) {
  constexpr int n = Panels<N>::kLanes, kWidth = Panels<N>::kWidth;
  const long u0 = block * n;
  for (long k = 0; k < to.depth(); ++k) {
    const auto v = Lane<N>::across(w + k * kWidth * row + u0, row, to.k - k * kWidth, units - u0);
    __builtin_memcpy(panel + k * n, &v, sizeof v);
  }
}

// b [gates * units], or null: as panels lie, a vector a gate of each block.
template <class T, class A>
void pack_bias(const T* b, int gates, long units, Range blocks, A* to) {
  constexpr long n = Lanes<A>::kCount;
  for (long block = blocks.begin; block < blocks.end; ++block) {
    const long left = units - block * n;
    const Block<false> lanes{static_cast<int>(left < n ? left : n)};
    for (int g = 0; g < gates; ++g) {
      store(to + (block * gates + g) * n, b ? lanes.load(b + g * units + block * n) : Vec<A>{});
    }
  }
}

enum class Sums { kRows, kColumns };

// One thread's part of the packing.
template <class T, class N>
void pack(Sums sums, const T* w, long units, const Panels<N>& to, int thread, int threads) {
  const Range mine = share_of(to.blocks, thread, threads);
  for (long block = mine.begin; block < mine.end; ++block) {
    if (sums == Sums::kRows) {
      pack_rows(w, to.k, units, block, to, to.panel(block));
    } else {
      pack_columns(w, units, units, block, to, to.panel(block));
    }
  }
}

}  // namespace fusednn::cpu::FUSEDNN_ISA
