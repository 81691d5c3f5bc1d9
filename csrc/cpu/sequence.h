// What forward and backward share: sizes, and a thread's view of a step. Included after product.h.

namespace fusednn::cpu::FUSEDNN_ISA {

// Rows of one pass over a panel: their tile stays in L1.
constexpr long kRowGroup = 48;

// Distance between rows of n numbers that a product reads together: one vector more than needed, since powers of two
// would put them into the same few sets of the cache.
template <class A>
constexpr long padded(long n) {
  constexpr long kLanes = Lanes<A>::kCount;
  return round_up(n, kLanes) + kLanes;
}

template <class A>
struct Sizes {
  static constexpr long kLanes = Lanes<A>::kCount;
  long batch, steps, hidden, proj, heads, tracks;
  long hidden_blocks, proj_blocks;  // of kLanes units
  long hidden_row, proj_row;        // distances between rows of states

  explicit Sizes(const RecurrentShape& s)
      : batch(s.batch), steps(s.steps), hidden(s.hidden), proj(s.proj), heads(s.heads), tracks(s.tracks()) {
    hidden_blocks = round_up(hidden, kLanes) / kLanes;
    proj_blocks = round_up(proj, kLanes) / kLanes;
    hidden_row = apart(hidden);
    proj_row = apart(proj);
  }

  bool reverse(long track) const { return track >= heads; }
  // Of rows that threads write side by side: what a core fetches ahead, behind the last row of its own, is then no row
  // of another thread, which would have to take it back.
  static long apart(long n) { return padded<A>(n) + 16 * kLanes; }
  // Of some blocks, those that exist of `size`.
  static Range units(Range blocks, long size) { return Range{blocks.begin * kLanes, blocks.end * kLanes}.first(size); }
  int lanes(long size, long block) const {
    const long left = size - block * kLanes;
    return static_cast<int>(left < kLanes ? left : kLanes);
  }
};

// Of a step, whose products multiply lanes of N, and whose threads send each other `sent` numbers a unit.
template <class N, class A>
StepCost step_cost(const Sizes<A>& sizes, int gates, int sent) {
  constexpr long kLanes = Sizes<A>::kLanes;
  const double lanes = static_cast<double>(sizes.proj) * gates * kLanes / Lane<N>::kWidth;
  const double number = static_cast<double>(sizeof(N)) / Lane<N>::kWidth;
  return {sizes.batch, sizes.hidden_blocks, 2 * lanes, lanes * sizeof(N), number * sent * kLanes};
}

// What one thread owns in one track.
struct Part {
  Range rows;         // of the batch
  Range blocks;       // of hidden units
  Range proj_blocks;  // of the units of h
  int team;           // threads that meet each step
  Barrier* barrier;
};

template <class A>
Part make_part(const Sizes<A>& sizes, const Share& share, int track, Barrier* barriers, int most_threads) {
  Part part;
  part.rows = share_of(sizes.batch, share.row_part, share.split.row_parts);
  part.blocks = share_of(sizes.hidden_blocks, share.unit_part, share.split.unit_parts);
  part.proj_blocks = share_of(sizes.proj_blocks, share.unit_part, share.split.unit_parts);
  part.team = share.split.unit_parts;
  part.barrier = barriers + track * most_threads + share.row_part;
  return part;
}

// Of the values that layer norm takes.
template <class A>
struct Moments {
  A mean, rstd;  // 1 / sqrt(variance + kNormEps)
};

template <class V>
FUSEDNN_FN auto total(V v) {
  auto sum = v[0];
  for (unsigned i = 1; i < sizeof(V) / sizeof(sum); ++i) sum += v[i];
  return sum;
}
FUSEDNN_FN float square_root(float x) {
  return __builtin_sqrtf(x);
}
FUSEDNN_FN double square_root(double x) {
  return __builtin_sqrt(x);
}

struct Step {
  long t;
  long offset;  // of row 0 of the batch in the tensors with N rows
  Range rows;   // that take part
  bool odd;     // selects one of two buffers

  // The direction of the walk over the weights. Of t, so that a row's bits do not depend on when other rows begin.
  bool backwards() const { return t % 2 == 1; }
};

template <class Visit>
FUSEDNN_FN void for_row_groups(Range rows, Visit visit) {
  for (long begin = rows.begin; begin < rows.end; begin += kRowGroup) {
    visit(Range{begin, begin + kRowGroup < rows.end ? begin + kRowGroup : rows.end});
  }
}

// n numbers from one storage type to another.
template <class To, class From>
void convert(To* to, const From* from, long n) {
  constexpr long kLanes = Lanes<AccOf<To>>::kCount;
  for (long u = 0; u < n; u += kLanes) {
    if (n - u >= kLanes) {
      store(to + u, load(from + u));
    } else {
      const Block<false> rest{static_cast<int>(n - u)};
      rest.store(to + u, rest.load(from + u));
    }
  }
}

// Row `row` of a tensor with rows of n, or zeros where there is none.
template <class T, class A>
void widen_or_zero(A* to, const void* from, long row, long n) {
  if (from != nullptr) return convert(to, static_cast<const T*>(from) + row * n, n);
  for (long u = 0; u < n; ++u) to[u] = 0;
}

// States in the form that products take.
template <class T>
struct Factors {
  using State = typename Factor<T>::State;
  using Number = typename Factor<T>::Number;
  static constexpr bool kApart = sizeof(State) < sizeof(AccOf<T>);  // from those that cells take

  // A row of k states that was just written: what a product reads behind it multiplies weights that are zero.
  static FUSEDNN_FN void end_row(State* row, long k) {
    if (k % Lane<Number>::kWidth != 0) row[k] = State{};
  }
  static FUSEDNN_FN Rows<Number> rows(const State* first, long row) {
    return {reinterpret_cast<const Number*>(first), row / Lane<Number>::kWidth};
  }
};

}  // namespace fusednn::cpu::FUSEDNN_ISA
