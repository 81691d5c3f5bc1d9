// A whole sequence forward. Included after sequence.h.
//
// A step of a thread, for its rows and its blocks of units: products over h_{t-1}, then at once, while they lie in L1,
// the cell; h_t goes to y and to the other one of two buffers; then the threads that share rows meet.

namespace fusednn::cpu::FUSEDNN_ISA {

template <class Cell, class T>
class Forward {
 public:
  explicit Forward(const RecurrentForward& args, bool packs = true)
      : a(args), options(args.shape.options), sizes(args.shape), packs(packs), tracks(sizes.tracks) {
    time = {a.shape.batch, a.shape.steps, a.shape.batch_sizes, nullptr};
    lay_out();
    space.allocate();
    lay_out();
    time.fill_offsets();
  }

  void run() {
    const int threads = useful_threads(cost(), static_cast<int>(sizes.tracks), a.shape.threads);
    run_team(threads, [](void* job, int i, int n) { static_cast<Forward*>(job)->thread(i, n); }, this);
  }

 protected:
  using A = AccOf<T>;
  using V = Vec<A>;
  using State = typename Factors<T>::State;
  using Number = typename Factors<T>::Number;
  static constexpr long kLanes = Lanes<A>::kCount;
  static constexpr int G = Cell::G, S = Cell::S, kSecond = Cell::kSecondGates, kFirst = G - kSecond;
  static constexpr long kBiasRow = G * kLanes;
  static constexpr int kTogether = G == 1 ? 5 : G < 4 ? 3 : 2;  // rows whose cells run side by side
  static constexpr long kTile = (kRowGroup + 1) * kLanes * largest(Blocking<kFirst>::kGroup * kFirst, 8);

  struct Track {
    Panels<Number> first, second, proj;
    InputPart<G, T> input;  // where the gates are not given
    A* bias;                // [hidden_blocks, G] vectors
    A* h[2];                // [B, proj_row] of this and the next step
    State* factor[2];       // what W_hh multiplies: h, or h times the mask
    A* c[2];                // [B, hidden_row] likewise; without zoneout one and the same
    State* middle;          // [B, hidden_row] what the second product or the projection takes
    A* raw;                 // [B, hidden_blocks, gates] vectors, the product that layer norm takes
    A* kept;                // [B, hidden_blocks, S] vectors, from the first to the second half of a two-product step
    const T* done;          // where single_step.h has computed the product: [B, its gates * units]; else null
  };

  // ------- memory

  A* take(long n) { return static_cast<A*>(space.take(sizeof(A) * static_cast<size_t>(n))); }
  State* take_states(long n) { return static_cast<State*>(space.take(sizeof(State) * static_cast<size_t>(n))); }

  Panels<Number> panels(long units, long k, int gates) {
    return packs ? take_panels<Number>(space, units, k, gates) : Panels<Number>{};
  }

  void lay_out() {
    const long batch = sizes.batch;
    for (long i = 0; i < sizes.tracks; ++i) {
      Track& d = tracks[i];
      d.first = panels(sizes.hidden, sizes.proj, kFirst);
      if (a.gates == nullptr) {
        const T* w_ih = static_cast<const T*>(a.w_ih) + i * G * sizes.hidden * a.shape.inputs;
        d.input.take(space, sizes, w_ih, a.shape.inputs, a.shape.threads);
      }
      d.bias = take(sizes.hidden_blocks * kBiasRow);
      for (int odd = 0; odd < 2; ++odd) {
        d.h[odd] = take(batch * sizes.proj_row);
        d.factor[odd] = apart ? take_states(batch * sizes.proj_row) : reinterpret_cast<State*>(d.h[odd]);
        if (Cell::kCellState) d.c[odd] = odd == 1 && !options.zones() ? d.c[0] : take(batch * sizes.hidden_row);
      }
      if (kSecond > 0 || a.w_hr != nullptr) d.middle = take_states(batch * sizes.hidden_row);
      if (kSecond > 0) d.second = panels(sizes.hidden, sizes.hidden, kSecond);
      if (options.norm != nullptr) d.raw = take(batch * sizes.hidden_blocks * kLanes * G);
      if (kSecond > 0) d.kept = take(batch * sizes.hidden_blocks * kLanes * S);
      if (a.w_hr != nullptr) d.proj = panels(sizes.proj, sizes.hidden, 1);
    }
    tiles = take(kTile * a.shape.threads);
    if (time.sizes != nullptr)
      time.offsets = static_cast<long*>(space.take(sizeof(long) * static_cast<size_t>(sizes.steps)));
    team_barrier = take_barriers(space, 1);
    barriers = take_barriers(space, static_cast<int>(sizes.tracks) * a.shape.threads);
  }

  // ------- before the first step

  void prepare(int i, int thread, int threads) {
    Track& d = tracks[i];
    const T* w = static_cast<const T*>(a.w_hh) + i * G * sizes.hidden * sizes.proj;
    pack(Sums::kRows, w, sizes.hidden, d.first, thread, threads);
    if (a.gates == nullptr) {
      const T* b = static_cast<const T*>(a.b_ih);
      d.input.prepare(b ? b + i * G * sizes.hidden : nullptr, thread, threads);
    }
    if (kSecond > 0) pack(Sums::kRows, w + kFirst * sizes.hidden * sizes.proj, sizes.hidden, d.second, thread, threads);
    if (a.w_hr != nullptr) {
      pack(Sums::kRows, static_cast<const T*>(a.w_hr) + i * sizes.proj * sizes.hidden, sizes.proj, d.proj, thread,
           threads);
    }
    prepare_bias(i, share_of(sizes.hidden_blocks, thread, threads));
    const Range rows = share_of(sizes.batch, thread, threads);
    for (long b = rows.begin; b < rows.end; ++b) prepare_row(i, b);
  }

  void prepare_bias(int i, Range blocks) {
    const T* b = static_cast<const T*>(a.b_hh);
    pack_bias(b ? b + i * G * sizes.hidden : nullptr, G, sizes.hidden, blocks, tracks[i].bias);
  }

  // Both buffers start from h0: a row that joins later (packed, reverse) reads either. A row that takes part in no step
  // leaves with the state it came with.
  void prepare_row(int i, long b) {
    Track& d = tracks[i];
    const long row = i * sizes.batch + b, h_at = row * sizes.proj, c_at = row * sizes.hidden;
    for (A* h : d.h) widen_or_zero<T>(h + b * sizes.proj_row, a.h0, row, sizes.proj);
    convert(static_cast<T*>(a.h_n) + h_at, d.h[0] + b * sizes.proj_row, sizes.proj);
    for (int odd = 0; odd < 2; ++odd) {
      State* factor = d.factor[odd] + b * sizes.proj_row;
      if (options.mask != nullptr) {
        mask_row(factor, d.h[odd] + b * sizes.proj_row, i, b, {0, sizes.proj_blocks});
      } else if (apart) {
        convert(factor, d.h[odd] + b * sizes.proj_row, sizes.proj);
      }
      Factors<T>::end_row(factor, sizes.proj);
    }
    if (d.middle != nullptr) Factors<T>::end_row(d.middle + b * sizes.hidden_row, sizes.hidden);
    if (!Cell::kCellState) return;
    for (int odd = 0; odd < 1 + (d.c[1] != d.c[0]); ++odd) {
      widen_or_zero<T>(d.c[odd] + b * sizes.hidden_row, a.c0, row, sizes.hidden);
    }
    convert(static_cast<T*>(a.c_n) + c_at, d.c[0] + b * sizes.hidden_row, sizes.hidden);
  }

  // ------- the steps

  StepCost cost() const { return step_cost<Number>(sizes, G, 1); }

  void thread(int thread, int threads) {
    for (int i = 0; i < sizes.tracks; ++i) prepare(i, thread, threads);
    team_barrier->wait(threads);
    const Share share = make_share(cost(), static_cast<int>(sizes.tracks), thread, threads);
    for (int i = share.first_track; i < share.last_track; ++i) {
      sequence(i, make_part(sizes, share, i, barriers, a.shape.threads), share.row_part, thread);
    }
  }

  Step step_at(int i, long s, const Part& part) const {
    const long t = sizes.reverse(i) ? sizes.steps - 1 - s : s;
    return {t, time.offset(t), part.rows.first(time.count(t)), s % 2 == 1};
  }

  struct InputStep : Step {
    bool from_zero;  // h_{t-1}, of all rows
    Tile<A> inputs;  // the input part, from the first of `rows` and block 0 on; null: it lies in the tensor
  };

  bool starts(long s) const { return s == 0 && a.h0 == nullptr; }

  void sequence(int i, const Part& part, int row_part, int thread) {
    A* tile = tiles + thread * kTile;
    Tile<A> inputs{};
    for (long s = 0, chunk_end = 0, chunk_steps = 0; s < sizes.steps; ++s) {
      if (a.gates == nullptr) {
        if (s == chunk_end) {
          chunk_end = fill_chunk(i, s, part, row_part, thread);
          chunk_steps = chunk_end - s;
          inputs = tracks[i].input.chunk(part, row_part);
        }
        if (s + chunk_steps < sizes.steps) fetch_x(i, s + chunk_steps, part);
      }
      const InputStep step{step_at(i, s, part), starts(s), inputs};
      first_product(i, step, part, tile);
      if (kSecond > 0 || a.w_hr != nullptr) {
        if (kSecond > 0 && options.mask != nullptr) mask_middle(i, step, part);
        part.barrier->wait(part.team);
        if constexpr (kSecond > 0) second_product(i, step, part, tile);
        if (a.w_hr != nullptr) project(i, step, part, tile);
      }
      if (follows) follow(i, step, part);
      const long stay = step.rows.first(time.count(sizes.reverse(i) ? step.t - 1 : step.t + 1)).end;
      for (long b = stay > step.rows.begin ? stay : step.rows.begin; b < step.rows.end; ++b) finish(i, step, part, b);
      inputs.data += step.rows.size() * inputs.row;
      if (s + 1 < sizes.steps) part.barrier->wait(part.team);
    }
  }

  // The input part of the steps from s on that fit a chunk, one at least. Returns the step after them.
  long fill_chunk(int i, long s, const Part& part, int row_part, int thread) const {
    const InputPart<G, T>& input = tracks[i].input;
    long rows = 0;
    do {
      const Step step = step_at(i, s++, part);
      for (long b = step.rows.begin; b < step.rows.end; ++b) input.copy(thread, rows++, x_at(step, b));
    } while (s < sizes.steps && rows + part.rows.size() <= kChunkRows);
    input.multiply(part, row_part, thread, rows);
    return s;
  }

  // What the next chunk will copy, a step of it each step: rows of other threads lie between, which the hardware's
  // prefetchers do not skip.
  void fetch_x(int i, long s, const Part& part) const {
    constexpr long kLine = static_cast<long>(kCacheLine / sizeof(T));
    const Step step = step_at(i, s, part);
    const T* x = x_at(step, step.rows.begin);
    for (long u = 0; u < step.rows.size() * a.shape.inputs; u += kLine) __builtin_prefetch(x + u, 0, 2);
  }

  const T* x_at(const Step& step, long b) const {
    return static_cast<const T*>(a.x) + (step.offset + b) * a.shape.inputs;
  }

  // What a product multiplies, and where its results meet the gates' input parts.
  struct Multiplied {
    const Panels<Number>& w;
    Rows<State> from;
    Start<A> start;  // of block 0
    const T* gates;  // to fetch: of row 0 at the product's first gate; null: none, or in a chunk
    const T* y;      // to fetch: of row 0, where the results become it; null: they do not
    const T* done;   // as in Track
    long units;      // of the result
  };

  static Start<A> bias_from(const Track& d, int gate) { return {d.bias + gate * kLanes, 0, kBiasRow}; }

  void first_product(int i, const InputStep& step, const Part& part, A* tile) {
    const Track& d = tracks[i];
    const Panels<Number> w = step.from_zero ? d.first.of_no_term() : d.first;
    const Multiplied factors{w,
                             {d.factor[step.odd], sizes.proj_row},
                             bias_from(d, 0),
                             a.gates == nullptr ? nullptr : gates_at(i, step, 0, 0),
                             kSecond > 0 || a.w_hr != nullptr ? nullptr : y_at(i, step, 0, 0),
                             d.done,
                             sizes.hidden};
    if (options.norm != nullptr) {
      return normed_product<kFirst, 0>(i, factors, step, part, tile, [&](auto lanes, long block, long b, const A* r) {
        first_cells(i, step, lanes, {block, block + 1}, {b, b + 1}, {r, 0, 0});
      });
    }
    product<kFirst>(factors, step, part.blocks, tile, [&](auto lanes, Range blocks, Range rows, Tile<const A> r) {
      first_cells(i, step, lanes, blocks, rows, r);
    });
  }

  void second_product(int i, const InputStep& step, const Part& part, A* tile) {
    const Track& d = tracks[i];
    const Multiplied factors{d.second,
                             {d.middle, sizes.hidden_row},
                             bias_from(d, kFirst),
                             a.gates == nullptr ? nullptr : gates_at(i, step, 0, 0) + kFirst * sizes.hidden,
                             y_at(i, step, 0, 0),
                             d.done,
                             sizes.hidden};
    if (options.norm != nullptr) {
      return normed_product<largest(kSecond, 1), kFirst>(
          i, factors, step, part, tile, [&](auto lanes, long block, long b, const A* r) {
            second_cells(i, step, lanes, {block, block + 1}, {b, b + 1}, {r, 0, 0});
          });
    }
    product<largest(kSecond, 1)>(
        factors, step, part.blocks, tile,
        [&](auto lanes, Range blocks, Range rows, Tile<const A> r) { second_cells(i, step, lanes, blocks, rows, r); });
  }

  void project(int i, const InputStep& step, const Part& part, A* tile) {
    const Track& d = tracks[i];
    const Multiplied factors{
        d.proj, {d.middle, sizes.hidden_row}, Start<A>::nothing(), nullptr, y_at(i, step, 0, 0), d.done, sizes.proj};
    product<1>(factors, step, part.proj_blocks, tile, [&](auto lanes, Range blocks, Range rows, Tile<const A> r) {
      for (long block = blocks.begin; block < blocks.end; ++block, r.data += r.panel) {
        for (long b = rows.begin; b < rows.end; ++b) {
          put_h(i, step, lanes, block, b, load(r.data + (b - rows.begin) * r.row));
        }
      }
    });
  }

  // Tiles of bias + from W, or bias + done, each handed to visit(lanes, blocks, rows, tile) with tile [rows, kGates]
  // vectors a block: several blocks of one row, or one of several.
  template <int kGates, class Visit>
  FUSEDNN_FN void product(const Multiplied& f, const Step& step, Range blocks, A* tile, Visit visit) {
    for_row_groups(step.rows, [&](Range rows) {
      walk_panels<kGates>(rows.size(), blocks, step.backwards(), [&](long block, long count) {
        const Tile<A> c{tile, kGates * kLanes, (rows.size() * kGates + 1) * kLanes};
        for (long q = 0; f.gates != nullptr && q < count; ++q) fetch_gates<kGates>(f.gates, block + q, rows);
        for (long q = 0; f.y != nullptr && f.w.k >= kLong && q < count; ++q) fetch_y(f.y, block + q, rows);
        if (f.done == nullptr) {
          multiply_group<Number, kGates>(rows.size(),
                                         Factors<T>::rows(f.from.data + rows.begin * f.from.row, f.from.row), f.w,
                                         block, count, f.start.at(block), c, step.backwards());
        } else {
          for (long q = 0; q < count; ++q) take_done<kGates>(c.data + q * c.panel, f, block + q, rows);
        }
        const bool row = kGates == 1 && rows.size() == 1 && sizes.lanes(f.units, block + count - 1) == kLanes;
        const long at_once = row ? count : 1;  // blocks
        for (long q = 0; q < count; q += at_once) {
          const int lanes = sizes.lanes(f.units, block + q);
          const Tile<const A> r{c.data + q * c.panel, c.row, c.panel};
          if (lanes == kLanes) {
            visit(Block<true>{lanes}, Range{block + q, block + q + at_once}, rows, r);
          } else {
            visit(Block<false>{lanes}, Range{block + q, block + q + 1}, rows, r);
          }
        }
      });
    });
  }

  // The cells of a block read one cache line a gate and row, far apart: no hardware prefetcher follows. Asked for
  // before the product, the lines arrive behind it.
  template <int kGates>
  void fetch_gates(const T* gates, long block, Range rows) const {
    for (long b = rows.begin; b < rows.end; ++b) {
      const T* row = gates + b * sizes.tracks * G * sizes.hidden + block * kLanes;
      for (int g = 0; g < kGates; ++g) __builtin_prefetch(row + g * sizes.hidden, 0, 2);
    }
  }

  // The lines that they write, too, where a product takes as long as a line needs to come.
  static constexpr long kLong = 256;
  void fetch_y(const T* y, long block, Range rows) const {
    for (long b = rows.begin; b < rows.end; ++b)
      __builtin_prefetch(y + b * sizes.tracks * sizes.proj + block * kLanes, 1);
  }

  template <int kGates>
  void take_done(A* tile, const Multiplied& f, long block, Range rows) const {
    const Block<false> lanes{sizes.lanes(f.units, block)};
    const A* start = f.start.at(block).data;
    for (long b = rows.begin; b < rows.end; ++b) {
      for (int g = 0; g < kGates; ++g, tile += kLanes) {
        store(tile, load(start + g * kLanes) + lanes.load(f.done + (b * kGates + g) * f.units + block * kLanes));
      }
    }
  }

  // ------- the cells of one block

  const T* gates_at(int i, const Step& step, long block, long b) const {
    return static_cast<const T*>(a.gates) + ((step.offset + b) * sizes.tracks + i) * G * sizes.hidden + block * kLanes;
  }

  template <int kFrom, int kTo, class Lane>
  FUSEDNN_FN void load_inputs(int i, const InputStep& step, Lane lanes, long block, long b, V* x) const {
    if (step.inputs.data != nullptr) {
      const A* from = step.inputs.data + (b - step.rows.begin) * step.inputs.row + block * step.inputs.panel;
      for (int g = kFrom; g < kTo; ++g) x[g] = load(from + g * kLanes);
    } else {
      const T* from = gates_at(i, step, block, b);
      for (int g = kFrom; g < kTo; ++g) x[g] = lanes.load(from + g * sizes.hidden);
    }
  }

  template <class Lane>
  __attribute__((noinline)) void first_cells(int i, const InputStep& step, Lane lanes, Range blocks, Range rows,
                                             const Tile<const A>& r) {
    cells<0, kFirst>(i, step, lanes, blocks, rows, r);
  }

  template <class Lane>
  __attribute__((noinline)) void second_cells(int i, const InputStep& step, Lane lanes, Range blocks, Range rows,
                                              const Tile<const A>& r) {
    cells<kFirst, G>(i, step, lanes, blocks, rows, r);
  }

  // Neighbours whose cells run side by side: the rows of a block, or the blocks of one row.
  template <int kFrom, int kTo, class Lane>
  FUSEDNN_FN void cells(int i, const InputStep& step, Lane lanes, Range blocks, Range rows, Tile<const A> r) {
    if constexpr (kTo - kFrom == 1) {  // with more gates a cell has enough that does not wait for one another
      if (blocks.size() > 1) {
        for (; blocks.size() >= kTogether; blocks.begin += kTogether, r.data += kTogether * r.panel) {
          cells_of<kTogether, true, kFrom, kTo>(i, step, lanes, blocks.begin, rows.begin, r);
        }
        for (; blocks.size() >= 2; blocks.begin += 2, r.data += 2 * r.panel) {
          cells_of<2, true, kFrom, kTo>(i, step, lanes, blocks.begin, rows.begin, r);
        }
        if (blocks.size() == 0) return;
      }
    }
    constexpr long kRow = (kTo - kFrom) * kLanes;
    long b = rows.begin;
    for (; b + kTogether <= rows.end; b += kTogether, r.data += kTogether * kRow) {
      cells_of<kTogether, false, kFrom, kTo>(i, step, lanes, blocks.begin, b, r);
    }
    for (; b < rows.end; ++b, r.data += kRow) cells_of<1, false, kFrom, kTo>(i, step, lanes, blocks.begin, b, r);
  }

  // Of N neighbours, the first one at (block, b): all gates, or one half of a step of two products.
  template <int N, bool kBlocks, int kFrom, int kTo, class Lane>
  FUSEDNN_FN void cells_of(int i, const InputStep& step, Lane lanes, long block, long b, Tile<const A> r) {
    const Track& d = tracks[i];
    const long next = kBlocks ? r.panel : (kTo - kFrom) * kLanes;
    Several<A, N> x[G], rec[G], saved[S + 1] = {}, h_prev{}, c{}, h;
    for (int n = 0; n < N; ++n) {
      const long row = kBlocks ? b : b + n, at = kBlocks ? block + n : block;
      V inputs[G];
      load_inputs<kFrom, kTo>(i, step, lanes, at, row, inputs);
      for (int g = kFrom; g < kTo; ++g) x[g].v[n] = inputs[g];
      for (int g = kFrom; g < kTo; ++g) rec[g].v[n] = load(r.data + n * next + (g - kFrom) * kLanes);
      for (int k = 0; k < S && kFrom > 0; ++k) saved[k].v[n] = load(kept_at(i, at, row) + k * kLanes);
      if (!Cell::kCellState) h_prev.v[n] = load(d.h[step.odd] + row * sizes.proj_row + at * kLanes);
      if (Cell::kCellState) c.v[n] = load(d.c[step.odd] + row * sizes.hidden_row + at * kLanes);
    }
    if constexpr (kSecond == 0) {
      h = Cell::forward(x, rec, h_prev, c, saved);
    } else if constexpr (kFrom == 0) {
      h = Cell::forward_first(x, rec, h_prev, saved);
    } else {
      h = Cell::forward_second(x, rec, h_prev, saved);
    }
    for (int n = 0; n < N; ++n) {
      const long row = kBlocks ? b : b + n, at = kBlocks ? block + n : block;
      if (Cell::kCellState) store(d.c[!step.odd] + row * sizes.hidden_row + at * kLanes, c.v[n]);
      if (kTo < G) {
        for (int k = 0; k < S; ++k) store(kept_at(i, at, row) + k * kLanes, saved[k].v[n]);
      } else if (a.saved != nullptr) {
        for (int k = 0; k < S; ++k) lanes.store(saved_at(i, step, at, row) + k * sizes.hidden, saved[k].v[n]);
      }
      if (kTo < G || a.w_hr != nullptr) {
        lanes.store(d.middle + row * sizes.hidden_row + at * kLanes, h.v[n]);
      } else {
        put_h(i, step, lanes, at, row, h.v[n]);
      }
    }
  }

  A* kept_at(int i, long block, long b) const {
    return tracks[i].kept + (b * sizes.hidden_blocks + block) * S * kLanes;
  }

  T* saved_at(int i, const Step& step, long block, long b) const {
    return static_cast<T*>(a.saved) + ((step.offset + b) * sizes.tracks + i) * S * sizes.hidden + block * kLanes;
  }

  template <class Lane>
  FUSEDNN_FN void put_h(int i, const Step& step, Lane lanes, long block, long b, V h) const {
    lanes.store(y_at(i, step, block, b), h);
    keep_h(i, step, lanes, block, b, h);
  }

  T* y_at(int i, const Step& step, long block, long b) const {
    return static_cast<T*>(a.y) + ((step.offset + b) * sizes.tracks + i) * sizes.proj + block * kLanes;
  }

  // For the next step.
  template <class Lane>
  FUSEDNN_FN void keep_h(int i, const Step& step, Lane lanes, long block, long b, V h) const {
    const long at = b * sizes.proj_row + block * kLanes;
    store(tracks[i].h[!step.odd] + at, rounded<T>(h));
    if constexpr (Factors<T>::kApart) lanes.store(tracks[i].factor[!step.odd] + at, h);
  }

  // ------- layer norm: the whole row of a product, then its cells

  // visit(lanes, block, b, gates [kGates] vectors) for the thread's blocks of each row.
  template <int kGates, int kFrom, class Visit>
  void normed_product(int i, Multiplied f, const Step& step, const Part& part, A* tile, Visit visit) {
    const Start<A> bias = f.start;
    f.start = Start<A>::nothing();
    A* raw = tracks[i].raw;
    const long row =
        sizes.hidden_blocks * G * kLanes;  // for either product: rows of other threads may be at the other one
    product<kGates>(f, step, part.blocks, tile, [&](auto, Range blocks, Range rows, Tile<const A> r) {
      for (long block = blocks.begin; block < blocks.end; ++block, r.data += r.panel) {
        for (long b = rows.begin; b < rows.end; ++b) {
          const A* from = r.data + (b - rows.begin) * r.row;
          for (int g = 0; g < kGates; ++g) {
            store(raw + b * row + (block * kGates + g) * kLanes, load(from + g * kLanes));
          }
        }
      }
    });
    part.barrier->wait(part.team);
    for (long b = step.rows.begin; b < step.rows.end; ++b) {
      const Moments<A> m = moments<kGates>(raw + b * row);
      for (long block = part.blocks.begin; block < part.blocks.end; ++block) {
        const Block<false> lanes{sizes.lanes(sizes.hidden, block)};
        const T* gain = static_cast<const T*>(options.norm) + (i * G + kFrom) * sizes.hidden + block * kLanes;
        for (int g = 0; g < kGates; ++g) {
          const V n = (load(raw + b * row + (block * kGates + g) * kLanes) - m.mean) * m.rstd;
          const V shift = load(bias.at(block).data + g * kLanes);
          store(tile + g * kLanes, n * lanes.load(gain + g * sizes.hidden) + shift);
        }
        visit(lanes, block, b, tile);
      }
    }
  }

  // Of the units that exist.
  template <int kGates>
  Moments<A> moments(const A* raw) const {
    const A count = static_cast<A>(kGates * sizes.hidden);
    V sum{}, squares{};
    for (long v = 0; v < sizes.hidden_blocks * kGates; ++v) sum += load(raw + v * kLanes);
    const A mean = total(sum) / count;
    for (long v = 0; v < sizes.hidden_blocks * kGates; ++v) {
      V d = load(raw + v * kLanes) - mean;
      for (long u = sizes.lanes(sizes.hidden, v / kGates); u < kLanes; ++u) d[u] = 0;
      squares += d * d;
    }
    return {mean, 1 / square_root(total(squares) / count + static_cast<A>(kNormEps))};
  }

  // ------- options: what follows the cells of a step, over what the thread has just written

  // Of row b: h times the mask.
  template <class From>
  void mask_row(State* to, const From* h, int i, long b, Range blocks) const {
    const T* mask = static_cast<const T*>(options.mask) + (i * sizes.batch + b) * sizes.proj;
    for (long block = blocks.begin; block < blocks.end; ++block) {
      const Block<false> lanes{sizes.lanes(sizes.proj, block)};
      const V v = load(h + block * kLanes) * lanes.load(mask + block * kLanes);
      lanes.store(to + block * kLanes, rounded<T>(v));
    }
  }

  // What the second product takes: h, reset, in a cell whose h has the size of its units.
  void mask_middle(int i, const Step& step, const Part& part) const {
    for (long b = step.rows.begin; b < step.rows.end; ++b) {
      State* row = tracks[i].middle + b * sizes.hidden_row;
      mask_row(row, row, i, b, part.blocks);
    }
  }

  void follow(int i, const Step& step, const Part& part) const {
    const Track& d = tracks[i];
    const Zoneout<A> zoneout{options, sizes.heads, step.t};
    for (long b = step.rows.begin; b < step.rows.end; ++b) {
      const long h = b * sizes.proj_row, c = b * sizes.hidden_row, row = (step.offset + b) * sizes.tracks + i;
      if (!Cell::kCellState && a.states != nullptr) save_state(row, d.h[!step.odd] + h, part.blocks);
      if (options.zoneout_h > 0) {
        zoneout.keep(cells::kZoneoutH, i, b, part.proj_blocks, sizes.proj,
                     [&](long block, V share, Block<false> lanes) {
                       const long at = h + block * kLanes;
                       const V mixed = share * load(d.h[step.odd] + at) + (1.f - share) * load(d.h[!step.odd] + at);
                       keep_h(i, step, lanes, block, b, mixed);
                       lanes.store(static_cast<T*>(a.y) + row * sizes.proj + block * kLanes, mixed);
                     });
      }
      if (Cell::kCellState && options.zoneout_c > 0) {
        zoneout.keep(cells::kZoneoutC, i, b, part.blocks, sizes.hidden, [&](long block, V share, Block<false>) {
          const long at = c + block * kLanes;
          store(d.c[!step.odd] + at, share * load(d.c[step.odd] + at) + (1.f - share) * load(d.c[!step.odd] + at));
        });
      }
      if (Cell::kCellState && a.states != nullptr) save_state(row, d.c[!step.odd] + c, part.blocks);
      if (options.mask != nullptr) {
        mask_row(d.factor[!step.odd] + h, d.h[!step.odd] + h, i, b, part.proj_blocks);
      }
    }
  }

  void save_state(long row, const A* state, Range blocks) const {
    const Range mine = sizes.units(blocks, sizes.hidden);
    convert(static_cast<T*>(a.states) + row * sizes.hidden + mine.begin, state + mine.begin, mine.size());
  }

  // This was the row's last step: its states go out.
  void finish(int i, const Step& step, const Part& part, long b) const {
    const Track& d = tracks[i];
    const long row = i * sizes.batch + b;
    const Range h = sizes.units(part.proj_blocks, sizes.proj), c = sizes.units(part.blocks, sizes.hidden);
    convert(static_cast<T*>(a.h_n) + row * sizes.proj + h.begin, d.h[!step.odd] + b * sizes.proj_row + h.begin,
            h.size());
    if (!Cell::kCellState) return;
    convert(static_cast<T*>(a.c_n) + row * sizes.hidden + c.begin, d.c[!step.odd] + b * sizes.hidden_row + c.begin,
            c.size());
  }

  const RecurrentForward& a;
  const RecurrentOptions& options;
  const bool apart = Factors<T>::kApart || options.mask != nullptr;  // what W_hh multiplies, from h
  const bool follows = options.mask != nullptr || options.zones() || a.states != nullptr;
  const Sizes<A> sizes;
  const bool packs;  // weights; single_step.h does without
  Timeline time;
  Workspace space;
  Array<Track> tracks;
  A* tiles = nullptr;
  Barrier* team_barrier = nullptr;
  Barrier* barriers = nullptr;
};

}  // namespace fusednn::cpu::FUSEDNN_ISA
