// C = S + A W for a few rows and panels: the one inner loop of all kernels. Included after panels.h.

namespace fusednn::cpu::FUSEDNN_ISA {

template <class A>
struct Tile {
  A* data;
  long row;    // distance between rows
  long panel;  // distance between panels
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
};

template <class N>
struct Rows {
  const N* data;
  long row;
  long step = 1;  // distance between neighbours along k
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

// Accumulators in registers: kRows rows by kPanels panels of kGates vectors, over at most kSlice elements of k; one
// tile of so many rows after the other. A row's sums run over k in the same order whatever kRows and kPanels are, so a
// row's bits do not depend on its neighbours. kAhead: meanwhile asks L2 for k vectors a tile from `ahead` on.
template <class N, int kGates, int kPanels, int kRows, bool kAhead = false>
__attribute__((noinline)) void multiply(long tiles, Rows<N> a, Columns<N> w, Start<SumOf<N>> start, Tile<SumOf<N>> c,
                                        long k, const N* ahead) {
  using A = SumOf<N>;
  constexpr int n = Lanes<A>::kCount, kWide = kGates * kPanels;
  for (; tiles > 0; --tiles) {
    Vec<A> sum[kRows][kWide];
#pragma GCC unroll 32
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 32
      for (int j = 0; j < kWide; ++j) sum[i][j] = Vec<A>{};
    }
    const N *x_at = a.data, *w_at = w.data;
    for (long p = 0; p < k; ++p, x_at += a.step, w_at += w.step) {
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
        const A* from = start.data + i * start.row + j / kGates * start.panel + j % kGates * n;
        store(c.data + i * c.row + j / kGates * c.panel + j % kGates * n, load(from) + sum[i][j]);
      }
    }
    a.data += kRows * a.row, start.data += kRows * start.row, c.data += kRows * c.row, ahead += k * n;
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

// Lanes of k summed apart before they join the total: the weights of a slice stay near while the rows pass, and the
// rounding error grows with the slice and the number of slices, not with k (one long fp32 sum over 4 H terms lost 3
// bits). A shorter slice reads and writes the total more often than the better place in L1 is worth.
constexpr long kSlice = 128;

// All rows by kPanels panels, slice by slice, from either end of k. kAhead is for weights that outgrow L2: while the
// rows pass over one slice, the next one arrives, after the last one the first of the panels at `next`.
template <class N, int kGates, int kPanels, int kRows = Blocking<kGates>::kRows, bool kAhead = false>
void multiply_panels(long rows, const Rows<N>& a, const N* w, long w_panel, const Start<SumOf<N>>& first,
                     const Tile<SumOf<N>>& c, long k, bool backwards, const N* next) {
  constexpr long kVector = Lanes<SumOf<N>>::kCount, kStep = kGates * kVector;
  if (rows == 0) return;
  // Tiles as even as can be, those with a row more first.
  const unsigned tiles = static_cast<unsigned>(rows + kRows - 1) / kRows, least = static_cast<unsigned>(rows) / tiles;
  const long larger = static_cast<unsigned>(rows) - least * tiles, b = larger * (least + 1);
  const long slices = k > kSlice ? (k + kSlice - 1) / kSlice : 1, turn = backwards ? -1 : 1;
  long k0 = backwards ? (slices - 1) * kSlice : 0;
  next += k0 * kStep;
  Start<SumOf<N>> start = first;
  for (long left = slices; left > 0; --left, k0 += turn * kSlice) {
    const long length = k - k0 < kSlice ? k - k0 : kSlice, p = backwards && length > 0 ? k0 + length - 1 : k0;
    const N* ahead = left > 1 ? w + (k0 + turn * kSlice) * kStep : next;
    const Rows<N> from{a.data + p * a.step, a.row, turn * a.step};
    const Columns<N> columns{w + p * kStep, w_panel, turn * kStep};
    if (larger > 0) {
      multiply_tiles<N, kGates, kPanels, kRows, kAhead>(larger, least + 1, from, columns, start, c, length, ahead);
    }
    multiply_tiles<N, kGates, kPanels, kRows, kAhead>(tiles - larger, least, {from.data + b * a.row, a.row, from.step},
                                                      columns, {start.data + b * start.row, start.row, start.panel},
                                                      {c.data + b * c.row, c.row, c.panel}, length,
                                                      ahead + larger * length * kVector);
    start = c;
  }
}

constexpr size_t kStreamedBytes = 1536 * 1024;  // of weights, from which on a share of them does not stay in L2

// One row and up to kPanels panels.
template <class N, int kGates, int kPanels = Blocking<kGates>::kSinglePanels>
void multiply_single(long count, const Rows<N>& a, const N* w, long w_panel, const Start<SumOf<N>>& start,
                     const Tile<SumOf<N>>& c, long k, bool backwards) {
  if constexpr (kPanels > 1) {
    if (count < kPanels) return multiply_single<N, kGates, kPanels - 1>(count, a, w, w_panel, start, c, k, backwards);
  }
  multiply_panels<N, kGates, kPanels, 1>(1, a, w, w_panel, start, c, k, backwards, w);
}

// `count` neighbouring panels from `block` on, as walk_panels gives them.
template <class N, int kGates>
void multiply_group(long rows, const Rows<N>& a, const Panels<N>& w, long block, long count,
                    const Start<SumOf<N>>& start, const Tile<SumOf<N>>& c, bool backwards = false) {
  using S = Blocking<kGates>;
  const N* panel = w.panel(block);
  if (rows == 1) {
    multiply_single<N, kGates>(count, a, panel, w.panel_size(), start, c, w.depth(), backwards);
  } else if (count == S::kPanels && rows > S::kRows && w.bytes() > kStreamedBytes) {
    const N* next = w.panel(backwards ? block - count : block + count);  // at an end of the walk some other memory
    multiply_panels<N, kGates, S::kPanels, S::kRows, true>(rows, a, panel, w.panel_size(), start, c, w.depth(),
                                                           backwards, next);
  } else if (count == S::kPanels) {
    multiply_panels<N, kGates, S::kPanels>(rows, a, panel, w.panel_size(), start, c, w.depth(), backwards, panel);
  } else {
    multiply_panels<N, kGates, 1>(rows, a, panel, w.panel_size(), start, c, w.depth(), backwards, panel);
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
