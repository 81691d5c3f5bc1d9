// Gradients of a linear map y = x W^T + b over all rows. Included after sequence.h.
//
// d_W = d_y^T x is a product whose sums run over the rows: a thread takes lines of W, and for each of them all of d_y
// and x, so that threads write apart and a sum's order depends on nothing but the number of rows. d_x = d_y W is a
// product like those of the recurrence, in which a thread takes rows.

namespace fusednn::cpu::FUSEDNN_ISA {

template <class T>
class Linear {
 public:
  explicit Linear(const LinearBackward& args)
      : a(args),
        line_blocks(round_up(args.outputs, kLanes) / kLanes),
        chunks(round_up(args.rows, kDepth) / kDepth),
        copy_row(padded<A>(args.outputs)) {
    lay_out();
    space.allocate();
    lay_out();
  }

  void run() {
    if (!reads_lines() && a.d_x == nullptr) return;
    run_team(a.threads, [](void* job, int i, int n) { static_cast<Linear*>(job)->thread(i, n); }, this);
  }

 private:
  using A = AccOf<T>;
  using V = Vec<A>;
  using State = typename Factors<T>::State;
  using Number = typename Factors<T>::Number;
  static constexpr long kLanes = Lanes<A>::kCount, kWidth = Lane<Number>::kWidth;
  static constexpr long kTileRow = (Blocking<1>::kGroup + 1) * kLanes;
  // Lines of W whose sums stay in L2 while the rows pass, a chunk of them at a time.
  static constexpr long kLines = 192, kFew = 16, kDepth = 8 * kFew * kWidth;
  static_assert(kLines % kLanes == 0);

  // Of one thread.
  struct Own {
    Number* lines;  // [kDepth, kLines] of d_y
    A* sums[2];     // [kLines, padded(K)] of d_W
    A* bias;        // [kLines] of d_b
    State* copy;    // [kRowGroup, copy_row] of d_y
    A* tile;        // [kRowGroup, kGroup] vectors of d_x
  };

  static constexpr long kLineRow = padded<A>(kLines);

  // ------- memory

  template <class P>
  P* take(long n) {
    return static_cast<P*>(space.take(sizeof(P) * static_cast<size_t>(n)));
  }

  void lay_out() {
    for (int f = 0; f < 2; ++f) {
      inputs[f] = take_panels<Number>(space, chunks * round_up(a.inputs[f].size, kLanes), kDepth, 1);
    }
    if (a.d_x != nullptr) weights = take_panels<Number>(space, a.w_size, a.outputs, 1);
    for (int i = 0; i < a.threads; ++i) {
      Own& o = own[i];
      o.lines = take<Number>(kDepth / kWidth * kLineRow);
      for (int f = 0; f < 2; ++f) o.sums[f] = take<A>(kLines * padded<A>(a.inputs[f].size));
      o.bias = take<A>(kLines);
      if (a.d_x != nullptr) o.copy = take<State>(kRowGroup * copy_row), o.tile = take<A>(kRowGroup * kTileRow);
    }
    barrier = take_barriers(space, 1);
  }

  bool reads_lines() const { return a.d_b != nullptr || a.inputs[0].d_w != nullptr || a.inputs[1].d_w != nullptr; }

  void thread(int thread, int threads) {
    if (a.d_x != nullptr) {
      pack(Sums::kColumns, static_cast<const T*>(a.w), a.w_size, weights, thread, threads);
    }
    for (int f = 0; f < 2; ++f) pack_input(f, thread, threads);
    barrier->wait(threads);
    const Range mine = share_of(line_blocks, thread, threads);
    const Range lines = Sizes<A>::units(mine, reads_lines() ? a.outputs : 0);
    for (long begin = lines.begin; begin < lines.end; begin += kLines) {
      weight_gradient(own[thread], Range{begin, begin + kLines}.first(lines.end));
    }
    if (a.d_x == nullptr) return;
    for_row_groups(share_of(a.rows, thread, threads), [&](Range rows) { input_gradient(own[thread], rows); });
  }

  // ------- d_W = d_y^T x and d_b

  void weight_gradient(const Own& o, Range lines) const {
    for (int f = 0; f < 2; ++f) clear(o.sums[f], kLines * padded<A>(a.inputs[f].size));
    clear(o.bias, kLines);
    for (long n = 0; n < a.rows; n += kDepth) {
      const Range rows = Range{n, n + kDepth}.first(a.rows);
      copy_lines(o, lines, rows);
      for (int f = 0; f < 2; ++f) {
        if (a.inputs[f].d_w != nullptr) add_products(o, f, lines, rows);
      }
    }
    for (long m = lines.begin; m < lines.end; ++m) {
      for (int f = 0; f < 2; ++f) {
        const long size = a.inputs[f].size;
        if (a.inputs[f].d_w != nullptr) {
          convert(static_cast<T*>(a.inputs[f].d_w) + m * size, o.sums[f] + (m - lines.begin) * padded<A>(size), size);
        }
      }
    }
    if (a.d_b != nullptr) convert(static_cast<T*>(a.d_b) + lines.begin, o.bias, lines.size());
  }

  static void clear(A* to, long n) {
    for (long u = 0; u < n; u += kLanes) store(to + u, V{});
  }

  // A chunk of d_y for these lines, as products take it, and its sum to that of d_b: a few rows at a time, so that no
  // sum is long.
  void copy_lines(const Own& o, Range lines, Range rows) const {
    for (long n = rows.begin; n < rows.end; n += kFew) {
      const Range few = Range{n, n + kFew}.first(rows.end);
      for (long m = lines.begin; m < lines.end; m += kLanes) {
        if (a.d_b != nullptr) add_rows(o.bias + (m - lines.begin), few, m, lines.end - m);
        Number* to = o.lines + (n - rows.begin) / kWidth * kLineRow + (m - lines.begin);
        for (long i = few.begin; i < few.end; i += kWidth, to += kLineRow) {
          const auto v = Lane<Number>::across(d_y(i) + m, a.d_y_row, few.end - i, lines.end - m);
          __builtin_memcpy(to, &v, sizeof v);
        }
      }
    }
  }

  // To a vector of d_b, from line m on.
  void add_rows(A* bias, Range rows, long m, long count) const {
    V sum{};
    for (long i = rows.begin; i < rows.end; ++i) sum += Lane<A>::along(d_y(i) + m, count);
    store(bias, load(bias) + sum);
  }

  void add_products(const Own& o, int f, Range lines, Range rows) const {
    const Panels<Number> x = chunk(f, rows.begin / kDepth);
    walk_panels<1>(lines.size(), {0, x.blocks}, false, [&](long block, long count) {
      const Tile<A> sums{o.sums[f] + block * kLanes, padded<A>(a.inputs[f].size), kLanes};
      multiply_group<Number, 1>(lines.size(), Rows<Number>{o.lines, 1, kLineRow}, x, block, count, sums, sums);
    });
  }

  // The panels of x for the rows of a chunk.
  Panels<Number> chunk(int f, long i) const {
    Panels<Number> x = inputs[f];
    x.blocks = round_up(a.inputs[f].size, kLanes) / kLanes;
    x.data = x.panel(i * x.blocks);
    x.k = Range{i * kDepth, (i + 1) * kDepth}.first(a.rows).size();
    x.pad += inputs[f].depth() - x.depth();
    return x;
  }

  void pack_input(int f, int thread, int threads) const {
    const Range mine = share_of(inputs[f].blocks, thread, threads);
    const long size = a.inputs[f].size, blocks = round_up(size, kLanes) / kLanes;
    for (long at = mine.begin; at < mine.end; ++at) {
      const Panels<Number> x = chunk(f, at / blocks);
      const T* first = static_cast<const T*>(a.inputs[f].x) + at / blocks * kDepth * size;
      pack_columns(first, size, size, at % blocks, x, x.panel(at % blocks));
    }
  }

  // ------- d_x = d_y W

  void input_gradient(const Own& o, Range rows) const {
    const long size = a.w_size;
    for (long n = rows.begin; n < rows.end; ++n) {
      State* to = o.copy + (n - rows.begin) * copy_row;
      convert(to, d_y(n), a.outputs);
      Factors<T>::end_row(to, a.outputs);
    }
    walk_panels<1>(rows.size(), {0, weights.blocks}, false, [&](long block, long count) {
      multiply_group<Number, 1>(rows.size(), Factors<T>::rows(o.copy, copy_row), weights, block, count,
                                Start<A>::nothing(), {o.tile, kTileRow, kLanes});
      const Range units = Sizes<A>::units({block, block + count}, size);
      for (long n = rows.begin; n < rows.end; ++n) {
        convert(static_cast<T*>(a.d_x) + n * size + units.begin, o.tile + (n - rows.begin) * kTileRow, units.size());
      }
    });
  }

  const T* d_y(long row) const { return static_cast<const T*>(a.d_y) + row * a.d_y_row; }

  const LinearBackward& a;
  const long line_blocks, chunks, copy_row;
  Workspace space;
  Array<Own> own{a.threads};
  Panels<Number> inputs[2]{}, weights{};  // x, a chunk of rows after the other; W, for d_x
  Barrier* barrier = nullptr;
};

template <class T>
void linear_backward_of(const LinearBackward& args) {
  Linear<T>(args).run();
}

}  // namespace fusednn::cpu::FUSEDNN_ISA
