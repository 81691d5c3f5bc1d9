// A whole sequence backward. Included after sequence.h.
//
// From the last step to the first. A step of a thread: the cell's backward on its own units gives the gradients of the
// gates, which go out and into a tile that all threads of the group see; they meet; the product of the tile with W_hh,
// for the thread's own units of h, gives dh of the step before. Everything else a thread touches is its own.

namespace fusednn::cpu::FUSEDNN_ISA {

template <class Cell, class T>
class Backward {
 public:
  explicit Backward(const RecurrentBackward& args, bool packs = true)
      : a(args), options(args.shape.options), sizes(args.shape), packs(packs), tracks(sizes.tracks) {
    time = {a.shape.batch, a.shape.steps, a.shape.batch_sizes, nullptr};
    lay_out();
    space.allocate();
    lay_out();
    time.fill_offsets();
  }

  void run() {
    const int threads = useful_threads(cost(), static_cast<int>(sizes.tracks), a.shape.threads);
    run_team(threads, [](void* job, int i, int n) { static_cast<Backward*>(job)->thread(i, n); }, this);
  }

 protected:
  using A = AccOf<T>;
  using V = Vec<A>;
  using State = typename Factors<T>::State;
  using Number = typename Factors<T>::Number;
  static constexpr long kLanes = Lanes<A>::kCount;
  static constexpr int G = Cell::G, S = Cell::S, kSecond = Cell::kSecondGates, kFirst = G - kSecond;

  struct Track {
    Panels<Number> first, second, proj;
    A* dh;               // [B, proj_row] reaches h_t from later steps
    A* through;          // what of it passed through W_hh: dh itself, or with a mask apart until it is masked
    A* kept_h;           // [B, proj_row] what zoneout lets pass by the cell; null without
    A* kept_c;           // [B, hidden_row]
    A* dc;               // [B, hidden_row]
    A* dm;               // [B, hidden_row] reaches what the second product or the projection took
    State* tile[2];      // [B, tile_row] gradients of the first gates
    State* second_tile;  // [B, second_row] of the last gates, or of the projection's output
    State* raw;          // [B, tile_row] with layer norm of the first gates' products; null without
    State* second_raw;   // [B, second_row] of the last gates'
  };

  // ------- memory

  A* take(long n) { return static_cast<A*>(space.take(sizeof(A) * static_cast<size_t>(n))); }
  State* take_states(long n) { return static_cast<State*>(space.take(sizeof(State) * static_cast<size_t>(n))); }
  long tile_row() const { return sizes.apart(kFirst * sizes.hidden); }
  long second() const { return kSecond > 0 ? kSecond * sizes.hidden : sizes.proj; }
  long second_row() const { return sizes.apart(second()); }

  Panels<Number> panels(long units, long k) {
    return packs ? take_panels<Number>(space, units, k, 1) : Panels<Number>{};
  }

  void lay_out() {
    const long batch = sizes.batch;
    for (long i = 0; i < sizes.tracks; ++i) {
      Track& d = tracks[i];
      d.first = panels(sizes.proj, kFirst * sizes.hidden);
      d.dh = take(batch * sizes.proj_row);
      d.through = options.mask == nullptr ? d.dh : take(batch * sizes.proj_row);
      if (options.zones()) d.kept_h = take(batch * sizes.proj_row), d.kept_c = take(batch * sizes.hidden_row);
      if (Cell::kCellState) d.dc = take(batch * sizes.hidden_row);
      for (State*& tile : d.tile) tile = take_states(batch * tile_row());
      if (kSecond > 0 || a.w_hr != nullptr) d.dm = take(batch * sizes.hidden_row);
      if (kSecond > 0 || a.w_hr != nullptr) d.second_tile = take_states(batch * second_row());
      if (options.norm != nullptr) d.raw = take_states(batch * tile_row());
      if (options.norm != nullptr && kSecond > 0) d.second_raw = take_states(batch * second_row());
      if (kSecond > 0) d.second = panels(sizes.hidden, kSecond * sizes.hidden);
      if (a.w_hr != nullptr) d.proj = panels(sizes.hidden, sizes.proj);
    }
    if (time.sizes != nullptr)
      time.offsets = static_cast<long*>(space.take(sizeof(long) * static_cast<size_t>(sizes.steps)));
    team_barrier = take_barriers(space, 1);
    barriers = take_barriers(space, static_cast<int>(sizes.tracks) * a.shape.threads);
  }

  // ------- before the first step

  void prepare(int i, int thread, int threads) {
    Track& d = tracks[i];
    const T* w = static_cast<const T*>(a.w_hh) + i * G * sizes.hidden * sizes.proj;
    pack(Sums::kColumns, w, sizes.proj, d.first, thread, threads);
    if (kSecond > 0) {
      pack(Sums::kColumns, w + kFirst * sizes.hidden * sizes.proj, sizes.hidden, d.second, thread, threads);
    }
    if (a.w_hr != nullptr) {
      pack(Sums::kColumns, static_cast<const T*>(a.w_hr) + i * sizes.proj * sizes.hidden, sizes.hidden, d.proj, thread,
           threads);
    }
    const Range rows = share_of(sizes.batch, thread, threads);
    for (long b = rows.begin; b < rows.end; ++b) prepare_row(i, b);
  }

  void prepare_row(int i, long b) {
    const long row = i * sizes.batch + b;
    widen_or_zero<T>(tracks[i].dh + b * sizes.proj_row, a.grad_h_n, row, sizes.proj);
    end_row(tracks[i].tile[0], b, kFirst * sizes.hidden);
    end_row(tracks[i].tile[1], b, kFirst * sizes.hidden);
    end_row(tracks[i].raw, b, kFirst * sizes.hidden);
    end_row(tracks[i].second_tile, b, second());
    end_row(tracks[i].second_raw, b, second());
    if (options.mask != nullptr) widen_or_zero<T>(tracks[i].through + b * sizes.proj_row, nullptr, row, sizes.proj);
    if (Cell::kCellState) widen_or_zero<T>(tracks[i].dc + b * sizes.hidden_row, a.grad_c_n, row, sizes.hidden);
  }

  static void end_row(State* tile, long b, long k) {
    if (tile != nullptr) Factors<T>::end_row(tile + b * Sizes<A>::apart(k), k);
  }

  // ------- the steps

  StepCost cost() const { return step_cost<Number>(sizes, G, G); }

  void thread(int thread, int threads) {
    for (int i = 0; i < sizes.tracks; ++i) prepare(i, thread, threads);
    team_barrier->wait(threads);
    const Share share = make_share(cost(), static_cast<int>(sizes.tracks), thread, threads);
    for (int i = share.first_track; i < share.last_track; ++i) {
      const Part part = make_part(sizes, share, i, barriers, a.shape.threads);
      sequence(i, part);
      for (long b = part.rows.begin; b < part.rows.end; ++b) finish(i, part, b);
    }
  }

  struct BackStep : Step {
    long prev_offset, prev_count;  // of the step that gave h_{t-1}: rows from prev_count on took it from h0
  };

  void sequence(int i, const Part& part) {
    for (long s = 0; s < sizes.steps; ++s) {
      const long t = sizes.reverse(i) ? s : sizes.steps - 1 - s;
      const long prev = sizes.reverse(i) ? t + 1 : t - 1;
      const long prev_count = time.count(prev);
      const BackStep step{{t, time.offset(t), part.rows.first(time.count(t)), s % 2 == 1},
                          prev_count > 0 ? time.offset(prev) : 0,
                          prev_count};
      if (options.zones()) divide(i, step, part);
      if (kSecond > 0) {
        two_product_step(i, step, part);
      } else {
        if (a.w_hr != nullptr) unproject(i, step, part);
        one_product_step(i, step, part);
      }
      if (options.zones() || options.mask != nullptr) join(i, step, part);
    }
  }

  void one_product_step(int i, const BackStep& step, const Part& part) {
    const Track& d = tracks[i];
    last_gates(i, step, part);
    part.barrier->wait(part.team);
    if (options.norm != nullptr) {
      last_products(i, step, part);
      part.barrier->wait(part.team);
    }
    product(d.first, {d.raw == nullptr ? d.tile[step.odd] : d.raw, tile_row()}, {d.through, sizes.proj_row, kLanes},
            step, part.proj_blocks);
  }

  void two_product_step(int i, const BackStep& step, const Part& part) {
    const Track& d = tracks[i];
    last_gates(i, step, part);
    part.barrier->wait(part.team);
    if (options.norm != nullptr) {
      last_products(i, step, part);
      part.barrier->wait(part.team);
    }
    product(d.second, {d.second_raw == nullptr ? d.second_tile : d.second_raw, second_row()},
            {d.dm, sizes.hidden_row, kLanes}, step, part.blocks);
    if (options.mask != nullptr) mask_middle(i, step, part);
    first_gates(i, step, part);
    part.barrier->wait(part.team);
    if (options.norm != nullptr) {
      first_products(i, step, part);
      part.barrier->wait(part.team);
    }
    product(d.first, {d.raw == nullptr ? d.tile[step.odd] : d.raw, tile_row()}, {d.through, sizes.proj_row, kLanes},
            step, part.proj_blocks);
  }

  // dh of the projection's output, and from it that of its input.
  void unproject(int i, const BackStep& step, const Part& part) {
    const Track& d = tracks[i];
    projection(i, step, part);
    part.barrier->wait(part.team);
    product(d.proj, {d.second_tile, second_row()}, {d.dm, sizes.hidden_row, kLanes}, step, part.blocks);
  }

  // All gates, or in a step of two products those of the second one.
  void last_gates(int i, const BackStep& step, const Part& part) const {
    for_cells(step, part.blocks, [&](auto lanes, long block, long b) __attribute__((always_inline)) {
      if constexpr (kSecond > 0) {
        second_cell(i, step, lanes, block, b);
      } else {
        one_cell(i, step, lanes, block, b);
      }
    });
  }

  void first_gates(int i, const BackStep& step, const Part& part) const {
    if constexpr (kSecond > 0) {
      for_cells(step, part.blocks, [&](auto lanes, long block, long b) __attribute__((always_inline)) {
        first_cell(i, step, lanes, block, b);
      });
    }
  }

  void projection(int i, const Step& step, const Part& part) const {
    for (long block = part.proj_blocks.begin; block < part.proj_blocks.end; ++block) {
      projection_block(i, step, Block<false>{sizes.lanes(sizes.proj, block)}, block);
    }
    for (long b = step.rows.begin; b < step.rows.end; ++b) clear(tracks[i].dm + b * sizes.hidden_row, part.blocks);
  }

  static void clear(A* row, Range blocks) {
    for (long block = blocks.begin; block < blocks.end; ++block) store(row + block * kLanes, V{});
  }

  void product(const Panels<Number>& w, Rows<State> from, Tile<A> to, const Step& step, Range blocks) const {
    for_row_groups(step.rows, [&](Range rows) {
      walk_panels<1>(rows.size(), blocks, step.backwards(), [&](long block, long count) {
        const Tile<A> c{to.data + rows.begin * to.row + block * kLanes, to.row, to.panel};
        multiply_group<Number, 1>(rows.size(), Factors<T>::rows(from.data + rows.begin * from.row, from.row), w, block,
                                  count, c, c, step.backwards());
      });
    });
  }

  // Row by row, so that the tensors are read in the order in which they lie. visit(lanes, block, b).
  template <class Visit>
  FUSEDNN_FN void for_cells(const Step& step, Range blocks, Visit visit) const {
    const long full = sizes.hidden / kLanes, end = blocks.end < full ? blocks.end : full;
    for (long b = step.rows.begin; b < step.rows.end; ++b) {
      for (long block = blocks.begin; block < end; ++block) visit(Block<true>{kLanes}, block, b);
      for (long block = end < blocks.begin ? blocks.begin : end; block < blocks.end; ++block) {
        visit(Block<false>{sizes.lanes(sizes.hidden, block)}, block, b);
      }
    }
  }

  // ------- the cells of one block

  // Element (row of N, direction i, unit) of a tensor [N, D * size].
  template <class P>
  FUSEDNN_FN P at(P base, long row, int i, long size, long block) const {
    return base + (row * sizes.tracks + i) * size + block * kLanes;
  }

  const T* h_prev_at(int i, const BackStep& step, long block, long b) const {
    if (b < step.prev_count) return at(static_cast<const T*>(a.y), step.prev_offset + b, i, sizes.proj, block);
    return static_cast<const T*>(a.h0) + (i * sizes.batch + b) * sizes.proj + block * kLanes;
  }

  const T* c_prev_at(int i, const BackStep& step, long block, long b) const {
    if (b >= step.prev_count)
      return static_cast<const T*>(a.c0) + (i * sizes.batch + b) * sizes.hidden + block * kLanes;
    return at(c_of + c_at * sizes.hidden, step.prev_offset + b, i, c_values * sizes.hidden, block);
  }

  const T* saved_at(int i, long row, long block) const {
    return at(static_cast<const T*>(a.saved), row, i, S * sizes.hidden, block);
  }

  template <class Lane>
  FUSEDNN_FN void load_saved(int i, const Step& step, Lane lanes, long block, long b, V* saved) const {
    if constexpr (S > 0) {
      const T* from = saved_at(i, step.offset + b, block);
      for (int k = 0; k < S; ++k) saved[k] = lanes.load(from + k * sizes.hidden);
    }
  }

  template <class Lane>
  FUSEDNN_FN V whole_dh(int i, const Step& step, Lane lanes, long block, long b) const {
    const V dh = load(tracks[i].dh + b * sizes.proj_row + block * kLanes);
    if (grad_y == nullptr) return dh;
    return dh + lanes.load(at(grad_y, step.offset + b, i, sizes.proj, block));
  }

  // Gradients of gates [kFrom, kTo): to the tensors, and the recurrent ones to the tile.
  template <int kFrom, int kTo, class Lane>
  FUSEDNN_FN void put_gates(int i, const Step& step, Lane lanes, long block, long b, const V* dx, const V* dr,
                            State* tile) const {
    T* to = at(static_cast<T*>(a.d_gates), step.offset + b, i, G * sizes.hidden, block);
    for (int g = kFrom; g < kTo; ++g) lanes.store(to + g * sizes.hidden, dx[g]);
    for (int g = kFrom; g < kTo; ++g) lanes.store(tile + (g - kFrom) * sizes.hidden + block * kLanes, dr[g]);
    if constexpr (Cell::kSplit) {
      T* rec = at(static_cast<T*>(a.d_recurrent), step.offset + b, i, G * sizes.hidden, block);
      for (int g = kFrom; g < kTo; ++g) lanes.store(rec + g * sizes.hidden, dr[g]);
    }
  }

  template <class Lane>
  FUSEDNN_FN void one_cell(int i, const BackStep& step, Lane lanes, long block, long b) const {
    const Track& d = tracks[i];
    V saved[S + 1], dx[G], dr[G], h{}, h_prev{}, c_prev{}, dc{};
    load_saved(i, step, lanes, block, b, saved);
    if constexpr (Cell::kCellState) {
      c_prev = lanes.load(c_prev_at(i, step, block, b));
      dc = load(d.dc + b * sizes.hidden_row + block * kLanes);
    } else {
      h = lanes.load(at(own_h, step.offset + b, i, sizes.proj, block));
      h_prev = lanes.load(h_prev_at(i, step, block, b));
    }
    const V dh =
        a.w_hr != nullptr ? load(d.dm + b * sizes.hidden_row + block * kLanes) : whole_dh(i, step, lanes, block, b);
    const V direct = Cell::backward(saved, h, h_prev, c_prev, dh, dc, dx, dr);
    put_gates<0, G>(i, step, lanes, block, b, dx, dr, d.tile[step.odd] + b * tile_row());
    if (Cell::kCellState) store(d.dc + b * sizes.hidden_row + block * kLanes, dc);
    if (a.w_hr == nullptr) store(d.dh + b * sizes.proj_row + block * kLanes, direct);
  }

  template <class Lane>
  FUSEDNN_FN void second_cell(int i, const BackStep& step, Lane lanes, long block, long b) const {
    const Track& d = tracks[i];
    V saved[S + 1], dx[G], dr[G];
    load_saved(i, step, lanes, block, b, saved);
    const V h_prev = lanes.load(h_prev_at(i, step, block, b));
    const V dh = whole_dh(i, step, lanes, block, b);
    Cell::backward_second(saved, h_prev, dh, dx, dr);
    put_gates<kFirst, G>(i, step, lanes, block, b, dx, dr, d.second_tile + b * second_row());
    store(d.dh + b * sizes.proj_row + block * kLanes, dh);
    store(d.dm + b * sizes.hidden_row + block * kLanes, V{});
  }

  template <class Lane>
  FUSEDNN_FN void first_cell(int i, const BackStep& step, Lane lanes, long block, long b) const {
    const Track& d = tracks[i];
    V saved[S + 1], dx[G], dr[G];
    load_saved(i, step, lanes, block, b, saved);
    const V h_prev = lanes.load(h_prev_at(i, step, block, b));
    A* dh = d.dh + b * sizes.proj_row + block * kLanes;
    const V dm = load(d.dm + b * sizes.hidden_row + block * kLanes);
    const V direct = Cell::backward_first(saved, h_prev, load(dh), dm, dx, dr);
    put_gates<0, kFirst>(i, step, lanes, block, b, dx, dr, d.tile[step.odd] + b * tile_row());
    store(dh, direct);
  }

  void projection_block(int i, const Step& step, Block<false> lanes, long block) const {
    const Track& d = tracks[i];
    for (long b = step.rows.begin; b < step.rows.end; ++b) {
      const V dh = whole_dh(i, step, lanes, block, b);
      lanes.store(at(static_cast<T*>(a.d_proj), step.offset + b, i, sizes.proj, block), dh);
      lanes.store(d.second_tile + b * second_row() + block * kLanes, dh);
      store(d.dh + b * sizes.proj_row + block * kLanes, V{});
    }
  }

  // ------- layer norm: from the gradients of a row's gates to those of its product, for the thread's units

  void last_products(int i, const BackStep& step, const Part& part) const {
    const Track& d = tracks[i];
    if constexpr (kSecond > 0) {
      products<kFirst, G>(i, step, part, {d.second_tile, second_row()}, d.second_raw);
    } else {
      first_products(i, step, part);
    }
  }

  void first_products(int i, const BackStep& step, const Part& part) const {
    products<0, kFirst>(i, step, part, {tracks[i].tile[step.odd], tile_row()}, tracks[i].raw);
  }

  // With n = normed and d the gradient of n: rstd (d - mean(d) - n mean(d n)).
  template <int kFrom, int kTo>
  void products(int i, const BackStep& step, const Part& part, Rows<State> tile, State* raw) const {
    constexpr int kProducts = kSecond > 0 ? 2 : 1;
    const T* gain = static_cast<const T*>(options.norm) + i * G * sizes.hidden;
    for (long b = step.rows.begin; b < step.rows.end; ++b) {
      const long row = step.offset + b;
      const T* normed = at(static_cast<const T*>(a.normed), row, i, G * sizes.hidden, 0);
      const A rstd = load_one(static_cast<const T*>(a.rstd) + (row * sizes.tracks + i) * kProducts + (kFrom > 0));
      const auto gradient = [&](Block<false> lanes, int g, long u) __attribute__((always_inline)) {
        return lanes.load(tile.data + b * tile.row + (g - kFrom) * sizes.hidden + u) *
               lanes.load(gain + g * sizes.hidden + u);
      };
      V sum{}, dot{};
      for_gates<kFrom, kTo>({0, sizes.hidden_blocks}, [&](Block<false> lanes, int g, long u) {
        const V d = gradient(lanes, g, u);
        sum += d, dot += d * lanes.load(normed + g * sizes.hidden + u);
      });
      const A count = static_cast<A>((kTo - kFrom) * sizes.hidden), mean = total(sum) / count;
      const A mean_dot = total(dot) / count;
      T* out = at(static_cast<T*>(a.d_products), row, i, G * sizes.hidden, 0);
      for_gates<kFrom, kTo>(part.blocks, [&](Block<false> lanes, int g, long u) {
        const V n = lanes.load(normed + g * sizes.hidden + u);
        const V d = (gradient(lanes, g, u) - mean - n * mean_dot) * rstd;
        lanes.store(out + g * sizes.hidden + u, d);
        lanes.store(raw + b * tile.row + (g - kFrom) * sizes.hidden + u, d);
      });
    }
  }

  template <int kFrom, int kTo, class Visit>
  void for_gates(Range blocks, Visit visit) const {
    for (long block = blocks.begin; block < blocks.end; ++block) {
      const Block<false> lanes{sizes.lanes(sizes.hidden, block)};
      for (int g = kFrom; g < kTo; ++g) visit(lanes, g, block * kLanes);
    }
  }

  // ------- options

  // Zoneout: what the unit kept takes its share of the gradient, and the cell the rest.
  void divide(int i, const Step& step, const Part& part) const {
    const Track& d = tracks[i];
    const Zoneout<A> zoneout{options, sizes.heads, step.t};
    for (long b = step.rows.begin; b < step.rows.end; ++b) {
      zoneout.keep(cells::kZoneoutH, i, b, part.proj_blocks, sizes.proj, [&](long block, V share, Block<false> lanes) {
        const long own = b * sizes.proj_row + block * kLanes;
        V dh = load(d.dh + own);
        if (a.grad_y != nullptr) {
          dh += lanes.load(at(static_cast<const T*>(a.grad_y), step.offset + b, i, sizes.proj, block));
        }
        store(d.kept_h + own, share * dh);
        store(d.dh + own, (1.f - share) * dh);
      });
      if (!Cell::kCellState) continue;
      zoneout.keep(cells::kZoneoutC, i, b, part.blocks, sizes.hidden, [&](long block, V share, Block<false>) {
        const long own = b * sizes.hidden_row + block * kLanes;
        const V dc = load(d.dc + own);
        store(d.kept_c + own, share * dc);
        store(d.dc + own, (1.f - share) * dc);
      });
    }
  }

  // All that reaches h and c of the step before.
  void join(int i, const Step& step, const Part& part) const {
    const Track& d = tracks[i];
    for (long b = step.rows.begin; b < step.rows.end; ++b) {
      const long h = b * sizes.proj_row, c = b * sizes.hidden_row;
      if (options.mask != nullptr) mask_row(d.through + h, d.dh + h, i, b, part.proj_blocks);
      if (!options.zones()) continue;
      add(d.dh + h, d.kept_h + h, part.proj_blocks);
      if (Cell::kCellState) add(d.dc + c, d.kept_c + c, part.blocks);
    }
  }

  // to += from * mask; from becomes zero.
  void mask_row(A* from, A* to, int i, long b, Range blocks) const {
    const T* mask = static_cast<const T*>(options.mask) + (i * sizes.batch + b) * sizes.proj;
    for (long block = blocks.begin; block < blocks.end; ++block) {
      const V v =
          load(from + block * kLanes) * Block<false>{sizes.lanes(sizes.proj, block)}.load(mask + block * kLanes);
      store(from + block * kLanes, V{});
      store(to + block * kLanes, load(to + block * kLanes) + v);
    }
  }

  // The gradient of what the second product took, in a cell whose h has the size of its units.
  void mask_middle(int i, const Step& step, const Part& part) const {
    const T* mask = static_cast<const T*>(options.mask) + i * sizes.batch * sizes.proj;
    for (long b = step.rows.begin; b < step.rows.end; ++b) {
      for (long block = part.blocks.begin; block < part.blocks.end; ++block) {
        A* dm = tracks[i].dm + b * sizes.hidden_row + block * kLanes;
        store(dm,
              load(dm) * Block<false>{sizes.lanes(sizes.hidden, block)}.load(mask + b * sizes.proj + block * kLanes));
      }
    }
  }

  static void add(A* to, const A* from, Range blocks) {
    for (long block = blocks.begin; block < blocks.end; ++block) {
      store(to + block * kLanes, load(to + block * kLanes) + load(from + block * kLanes));
    }
  }

  void finish(int i, const Part& part, long b) const {
    const Track& d = tracks[i];
    const long row = i * sizes.batch + b;
    const Range h = sizes.units(part.proj_blocks, sizes.proj), c = sizes.units(part.blocks, sizes.hidden);
    convert(static_cast<T*>(a.d_h0) + row * sizes.proj + h.begin, d.dh + b * sizes.proj_row + h.begin, h.size());
    if (!Cell::kCellState) return;
    convert(static_cast<T*>(a.d_c0) + row * sizes.hidden + c.begin, d.dc + b * sizes.hidden_row + c.begin, c.size());
  }

  const RecurrentBackward& a;
  const RecurrentOptions& options;
  const Sizes<A> sizes;
  const bool packs;  // weights; single_step.h does without
  // With zoneout grad_y has joined dh before the cells run, and the states stand apart from what the cells gave.
  const T* const grad_y = static_cast<const T*>(options.zones() ? nullptr : a.grad_y);
  const T* const own_h = static_cast<const T*>(a.states == nullptr ? a.y : a.states);
  const T* const c_of = static_cast<const T*>(a.states == nullptr ? a.saved : a.states);
  const long c_at = a.states == nullptr ? Cell::kSavedC : 0, c_values = a.states == nullptr ? S : 1;
  Timeline time;
  Workspace space;
  Array<Track> tracks;
  Barrier* team_barrier = nullptr;
  Barrier* barriers = nullptr;
};

}  // namespace fusednn::cpu::FUSEDNN_ISA
