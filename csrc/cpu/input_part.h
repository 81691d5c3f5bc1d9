// The input part of all gates, W_ih x + b_ih, where the caller leaves it to the sequence: for a chunk of steps at a
// time, which still lies in the cache when the cells read it. Included after sequence.h.

namespace fusednn::cpu::FUSEDNN_ISA {

// Rows of a chunk: enough of them for each pass over the weights, few enough to stay in L2.
constexpr long kChunkRows = 128;

// Of one direction. The rows of a group of threads lie in a region of their own, in which each thread fills its units.
template <int G, class T>
class InputPart {
 public:
  using A = AccOf<T>;
  using State = typename Factors<T>::State;
  using Number = typename Factors<T>::Number;
  static constexpr long kLanes = Lanes<A>::kCount, kRow = G * kLanes, kGroup = Blocking<G>::kGroup;

  // W_ih [G*H, I].
  void take(Workspace& space, const Sizes<A>& sizes, const T* w_ih, long inputs, int threads) {
    units = sizes.hidden;
    weights = w_ih;
    used_once = sizes.steps * sizes.batch <= kChunkRows;
    w = take_panels<Number>(space, used_once ? threads * kGroup * kLanes : units, inputs, G);
    x_row = padded<A>(inputs);
    batch = sizes.batch;
    blocks = sizes.hidden_blocks;
    bias = take(space, blocks * kRow);
    data = take(space, ((threads * kChunkRows + batch) * kRow + threads * kLanes) * blocks);
    copies =
        static_cast<State*>(space.take(sizeof(State) * static_cast<size_t>(threads * (kChunkRows + batch) * x_row)));
  }

  // b_ih [G*H] or null.
  void prepare(const T* b, int thread, int threads) {
    if (!used_once) pack(Sums::kRows, weights, units, w, thread, threads);
    pack_bias(b, G, units, share_of(blocks, thread, threads), bias);
  }

  // Row `at` of a thread's chunk of x.
  void copy(int thread, long at, const T* x) const {
    State* to = copy_of(thread) + at * x_row;
    convert(to, x, w.k);
    Factors<T>::end_row(to, w.k);
  }

  // The chunk of a group of threads: [blocks, rows, G] vectors.
  Tile<A> chunk(const Part& part, int row_part) const {
    const long most = part.rows.size() > kChunkRows ? part.rows.size() : kChunkRows;
    return {data + ((row_part * kChunkRows + part.rows.begin) * kRow + row_part * kLanes) * blocks, kRow,
            most * kRow + kLanes};
  }

  // Its first `rows` rows, for the thread's blocks, from the thread's copies of x.
  void multiply(const Part& part, int row_part, int thread, long rows) const {
    const Tile<A> to = chunk(part, row_part);
    const State* x = copy_of(thread);
    walk_panels<G>(rows, part.blocks, false, [&](long block, long count) {
      const long at = used_once ? pack_now(block, count, thread) : block;
      for_row_groups({0, rows}, [&](Range group) {
        multiply_group<Number, G>(group.size(), Factors<T>::rows(x + group.begin * x_row, x_row), w, at, count,
                                  {bias + block * kRow, 0, kRow},
                                  {to.data + block * to.panel + group.begin * kRow, kRow, to.panel});
      });
    });
  }

 private:
  static A* take(Workspace& space, long n) { return static_cast<A*>(space.take(sizeof(A) * static_cast<size_t>(n))); }
  // Into the thread's own panels, which stay in L2. Returns the first of them.
  long pack_now(long block, long count, int thread) const {
    for (long q = 0; q < count; ++q) {
      pack_rows(weights, w.k, units, block + q, w, w.panel(thread * kGroup + q));
    }
    return thread * kGroup;
  }
  State* copy_of(int thread) const { return copies + thread * (kChunkRows + batch) * x_row; }

  const T* weights;
  bool used_once;    // each weight, by the one chunk there is: packed then, and nowhere kept
  Panels<Number> w;  // of all blocks; or of one group a thread
  A* bias;           // [blocks, G] vectors
  A* data;           // [threads * kChunkRows + B] rows of all blocks
  State* copies;     // [threads, kChunkRows + B, x_row]
  long units, blocks, batch, x_row;
};

}  // namespace fusednn::cpu::FUSEDNN_ISA
