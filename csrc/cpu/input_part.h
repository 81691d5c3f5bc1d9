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
  static constexpr long kLanes = Lanes<A>::kCount;

  void take(Workspace& space, const Sizes<A>& sizes, long inputs, int threads) {
    units = sizes.hidden;
    w = take_panels<A>(space, units, inputs, G);
    row = sizes.hidden_blocks * G * kLanes + kLanes;
    x_row = Sizes<A>::padded(inputs);
    batch = sizes.batch;
    bias = take(space, row);
    data = take(space, (threads * kChunkRows + batch) * row);
    copies = take(space, threads * (kChunkRows + batch) * x_row);
  }

  // W_ih [G*H, I], b_ih [G*H] or null.
  void prepare(const T* weights, const T* b, int thread, int threads) {
    pack(Sums::kRows, weights, units, w, thread, threads);
    const Range mine = share_of(w.blocks, thread, threads);
    for (long block = mine.begin; block < mine.end; ++block) {
      const long left = units - block * kLanes;
      const Block<false> lanes{static_cast<int>(left < kLanes ? left : kLanes)};
      for (int g = 0; g < G; ++g) {
        store(bias + (block * G + g) * kLanes, b ? lanes.load(b + g * units + block * kLanes) : Vec<A>{});
      }
    }
  }

  // Row `at` of a thread's chunk of x.
  void copy(int thread, long at, const T* x) const { widen(copy_of(thread) + at * x_row, x, w.k); }

  // The first row of a group's chunk: [rows, blocks, G] vectors.
  Rows<A> chunk(const Part& part, int row_part) const {
    return {data + (row_part * kChunkRows + part.rows.begin) * row, row};
  }

  // `rows` rows of the chunk from the thread's copies of x, for its blocks.
  void multiply(const Part& part, int row_part, int thread, long rows) const {
    A* const to = data + (row_part * kChunkRows + part.rows.begin) * row;
    const A* x = copy_of(thread);
    walk_panels<G>(rows, part.blocks, false, [&](long block, long count) {
      const long width = count * G * kLanes;
      for_row_groups({0, rows}, [&](Range group) {
        A* c = to + group.begin * row + block * G * kLanes;
        for (long b = 0; b < group.size(); ++b) {
          for (long v = 0; v < width; v += kLanes) store(c + b * row + v, load(bias + block * G * kLanes + v));
        }
        multiply_group<A, G>(group.size(), {x + group.begin * x_row, x_row}, w, block, count, {c, row, G * kLanes});
      });
    });
  }

 private:
  static A* take(Workspace& space, long n) { return static_cast<A*>(space.take(sizeof(A) * static_cast<size_t>(n))); }
  A* copy_of(int thread) const { return copies + thread * (kChunkRows + batch) * x_row; }

  Panels<A> w;
  A* bias;    // [blocks, G] vectors
  A* data;    // [threads * kChunkRows + B, row]
  A* copies;  // [threads, kChunkRows + B, x_row]
  long units, batch, row, x_row;
};

}  // namespace fusednn::cpu::FUSEDNN_ISA
