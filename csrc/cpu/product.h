// C = S + A W for a few rows and panels: the one inner loop of all kernels. Included after panels.h.

namespace fusednn::cpu::FUSEDNN_ISA {

template <class A>
struct Tile {
  A* data;
  long row;    // distance between rows
  long panel;  // distance between panels

  FUSEDNN_FN Tile from_row(long i) const { return {data + i * row, row, panel}; }
};

template <class A>
alignas(64) inline constexpr A kZeros[FUSEDNN_ACCUMULATORS * Lanes<A>::kCount]{};

// Where the sums start: C itself, or what is the same in all rows.
template <class A>
struct Start {
  const A* data;
  long row;    // 0: the same in all rows
  long panel;  // likewise

  FUSEDNN_FN Start(const A* data, long row, long panel) : data(data), row(row), panel(panel) {}
  FUSEDNN_FN Start(Tile<A> c) : Start(c.data, c.row, c.panel) {}
  static FUSEDNN_FN Start nothing() { return {kZeros<A>, 0, 0}; }
  FUSEDNN_FN Start at(long block) const { return {data + block * panel, row, panel}; }
  FUSEDNN_FN Start from_row(long i) const { return {data + i * row, row, panel}; }
};

template <class N>
struct Rows {
  const N* data;
  long row;
  long step = 1;  // distance between neighbours along k

  FUSEDNN_FN Rows from_row(long i) const { return {data + i * row, row, step}; }
};

// Panels side by side, as Rows.
template <class N>
struct Columns {
  const N* data;
  long panel;
  long step;
};

template <class N>
using SumOf = typename Lane<N>::Sum;

// Lanes of k summed apart before they join the total: the rounding error grows with the slice and the number of slices,
// not with k (one long fp32 sum over 4 H terms lost 3 bits).
constexpr long kSlice = 128;

// Accumulators in registers: kRows rows by kPanels panels of kGates vectors, slice by slice, whose total lies in C; one
// tile of so many rows after the other. A row's sums run over k in the same order whatever kRows and kPanels are, so a
// row's bits do not depend on its neighbours. kAhead: meanwhile asks L2 for k vectors a tile from `ahead` on.
template <class N, int kGates, int kPanels, int kRows, bool kAhead = false>
__attribute__((noinline)) void multiply(long tiles, Rows<N> a, Columns<N> w, Start<SumOf<N>> start, Tile<SumOf<N>> c,
                                        long k, const N* ahead) {
  using A = SumOf<N>;
  constexpr int n = Lanes<A>::kCount, kWide = kGates * kPanels;
  for (; tiles > 0; --tiles) {
    const N *x_at = a.data, *w_at = w.data;
    Start<A> total = start;
    long left = k;
    do {
      const long length = left < kSlice ? left : kSlice;
      Vec<A> sum[kRows][kWide];
#pragma GCC unroll 32
      for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 32
        for (int j = 0; j < kWide; ++j) sum[i][j] = Vec<A>{};
      }
      for (long p = 0; p < length; ++p, x_at += a.step, w_at += w.step) {
        if constexpr (kAhead) __builtin_prefetch(ahead + p * n, 0, 2);
        Vec<A> v[kWide];
#pragma GCC unroll 32
        for (int j = 0; j < kWide; ++j) v[j] = Lane<N>::read(w_at + j / kGates * w.panel + j % kGates * n);
#pragma GCC unroll 32
        for (int i = 0; i < kRows; ++i) {
          const N x = x_at[i * a.row];
#pragma GCC unroll 32
          for (int j = 0; j < kWide; ++j) sum[i][j] = Lane<N>::multiply_add(x, v[j], sum[i][j]);
        }
      }
#pragma GCC unroll 32
      for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 32
        for (int j = 0; j < kWide; ++j) {
          const A* from = total.data + i * total.row + j / kGates * total.panel + j % kGates * n;
          store(c.data + i * c.row + j / kGates * c.panel + j % kGates * n, load(from) + sum[i][j]);
        }
      }
      total = c, left -= length, ahead += length * n;
    } while (left > 0);
    a.data += kRows * a.row, start.data += kRows * start.row, c.data += kRows * c.row;
  }
}

constexpr int largest(int a, int b) {
  return a > b ? a : b;
}

// How many panels and rows fill the registers.
template <int kGates>
struct Blocking {
  static constexpr int kPanels = largest(1, 4 / kGates);
  static constexpr int kRows = largest(1, FUSEDNN_ACCUMULATORS / (kGates * kPanels));
  // One row alone takes more panels, to have enough sums in flight.
  static constexpr int kSinglePanels = largest(kPanels, (8 + kGates - 1) / kGates);
  static constexpr int kGroup = largest(kPanels, kSinglePanels);
};

// From here on rows and tiles are passed by reference: a copy of one waits for the stores that have just made it.
template <class N, int kGates, int kPanels, int kRows, bool kAhead>
void multiply_tiles(long tiles, long rows, const Rows<N>& a, const Columns<N>& w, const Start<SumOf<N>>& start,
                    const Tile<SumOf<N>>& c, long k, const N* ahead) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return multiply_tiles<N, kGates, kPanels, kRows - 1, kAhead>(tiles, rows, a, w, start, c, k, ahead);
    }
  }
  multiply<N, kGates, kPanels, kRows, kAhead>(tiles, a, w, start, c, k, ahead);
}

// All rows by kPanels panels. kAhead is for weights that outgrow L2: while the rows pass, those at `next` arrive.
template <class N, int kGates, int kPanels, int kRows = Blocking<kGates>::kRows, bool kAhead = false>
void multiply_panels(long rows, const Rows<N>& a, const Columns<N>& w, const Start<SumOf<N>>& start,
                     const Tile<SumOf<N>>& c, long k, const N* next) {
  if (rows == 0) return;
  // Tiles as even as can be, those with a row more first.
  const unsigned tiles = static_cast<unsigned>(rows + kRows - 1) / kRows, least = static_cast<unsigned>(rows) / tiles;
  const long larger = static_cast<unsigned>(rows) - least * tiles, b = larger * (least + 1);
  if (larger > 0) multiply_tiles<N, kGates, kPanels, kRows, kAhead>(larger, least + 1, a, w, start, c, k, next);
  multiply_tiles<N, kGates, kPanels, kRows, kAhead>(tiles - larger, least, a.from_row(b), w, start.from_row(b),
                                                    c.from_row(b), k, next + larger * k * Lanes<SumOf<N>>::kCount);
}

constexpr size_t kStreamedBytes = 1536 * 1024;  // of weights, from which on a share of them does not stay in L2

// One row and up to kPanels panels.
template <class N, int kGates, int kPanels = Blocking<kGates>::kSinglePanels>
void multiply_single(long count, const Rows<N>& a, const Columns<N>& w, const Start<SumOf<N>>& start,
                     const Tile<SumOf<N>>& c, long k) {
  if constexpr (kPanels > 1) {
    if (count < kPanels) return multiply_single<N, kGates, kPanels - 1>(count, a, w, start, c, k);
  }
  multiply_panels<N, kGates, kPanels, 1>(1, a, w, start, c, k, w.data);
}

// `count` neighbouring panels from `block` on, as walk_panels gives them; the sums from either end of k.
template <class N, int kGates>
void multiply_group(long rows, const Rows<N>& a, const Panels<N>& w, long block, long count,
                    const Start<SumOf<N>>& start, const Tile<SumOf<N>>& c, bool backwards = false) {
  using S = Blocking<kGates>;
  constexpr long kStep = kGates * Lanes<SumOf<N>>::kCount;
  const long k = w.depth(), turn = backwards ? -1 : 1, first = backwards && k > 0 ? k - 1 : 0;
  const Rows<N> from{a.data + first * a.step, a.row, turn * a.step};
  const Columns<N> columns{w.panel(block) + first * kStep, w.panel_size(), turn * kStep};
  if (rows == 1) {
    multiply_single<N, kGates>(count, from, columns, start, c, k);
  } else if (count == S::kPanels && rows > S::kRows && w.bytes() > kStreamedBytes) {
    const N* next = w.panel(block + turn * count);  // at an end of the walk some other memory
    multiply_panels<N, kGates, S::kPanels, S::kRows, true>(rows, from, columns, start, c, k, next);
  } else if (count == S::kPanels) {
    multiply_panels<N, kGates, S::kPanels>(rows, from, columns, start, c, k, columns.data);
  } else {
    multiply_panels<N, kGates, 1>(rows, from, columns, start, c, k, columns.data);
  }
}

// Calls visit(block, count) over all blocks, from either end: a walk that turns round each step, the sums with it,
// finds the weights it used last still in the cache.
template <int kGates, class Visit>
FUSEDNN_FN void walk_panels(long rows, Range blocks, bool backwards, Visit visit) {
  using S = Blocking<kGates>;
  while (blocks.size() > 0) {
    const long left = blocks.size();
    const long few = left < S::kSinglePanels ? left : S::kSinglePanels;
    const long count = rows == 1 ? few : left >= S::kPanels ? S::kPanels : 1;
    visit(backwards ? blocks.end - count : blocks.begin, count);
    if (backwards) {
      blocks.end -= count;
    } else {
      blocks.begin += count;
    }
  }
}

}  // namespace fusednn::cpu::FUSEDNN_ISA
