// Sequences of one step (cells, layer.step()): packing the weights would cost more than their one use, so the products
// are library GEMMs and only the cells run here. Included after forward.h and backward.h.

namespace fusednn::cpu::FUSEDNN_ISA {

inline __attribute__((always_inline)) bool is_single_step(const RecurrentShape& s) {
  return s.steps == 1 && s.batch_sizes == nullptr && s.gemm != nullptr && s.batch > 0;
}

// Cells enough to keep one thread busy for longer than it takes to wake it.
constexpr long kCellsPerThread = 16 * 1024;

// Work over the blocks of one step, shared among threads. Job: void part(const Part&, int thread).
template <class A>
struct StepTeam {
  const Sizes<A>& sizes;
  int most_threads;
  Barrier* barrier;

  Part part(int thread, int threads) const {
    return {{0, sizes.batch},
            share_of(sizes.hidden_blocks, thread, threads),
            share_of(sizes.proj_blocks, thread, threads),
            1,
            barrier};
  }

  template <class Work>
  void run(Work work) const {
    struct Call {
      const StepTeam* team;
      Work* work;
    } call{this, &work};
    const long useful = 1 + sizes.batch * sizes.hidden / kCellsPerThread;
    const int threads = useful < most_threads ? static_cast<int>(useful) : most_threads;
    run_team(
        threads,
        [](void* context, int thread, int threads) {
          const Call& call = *static_cast<Call*>(context);
          (*call.work)(call.team->part(thread, threads), thread);
        },
        &call);
  }
};

template <class Cell, class T>
class ForwardStep : Forward<Cell, T> {
  using Base = Forward<Cell, T>;
  using Base::a, Base::options, Base::sizes, Base::tracks;
  using typename Base::A;
  static constexpr int G = Cell::G;

 public:
  explicit ForwardStep(const RecurrentForward& args) : Base(args, false) {
    const long widest = sizes.proj > G * sizes.hidden ? sizes.proj : G * sizes.hidden;
    const long factor = sizes.hidden > sizes.proj ? sizes.hidden : sizes.proj;
    product = static_cast<T*>(products.take(sizeof(T) * static_cast<size_t>(sizes.batch * (widest + factor))));
    products.allocate();
    product = static_cast<T*>(products.take(0));
    narrowed = product + sizes.batch * widest;
  }

  void run() {
    for (int i = 0; i < sizes.tracks; ++i) track(i);
  }

 private:
  void track(int i) {
    const StepTeam<A> team{sizes, a.shape.threads, this->barriers};
    const typename Base::InputStep step{{0, 0, {0, sizes.batch}, false}, this->starts(0), {}};
    this->prepare_bias(i, {0, sizes.hidden_blocks});
    for (long b = 0; b < sizes.batch; ++b) this->prepare_row(i, b);
    const T* w = static_cast<const T*>(a.w_hh) + i * G * sizes.hidden * sizes.proj;
    if (!step.from_zero) multiply_state(i, w);
    each_part(team, [&](const Part& part, int thread) { this->first_product(i, step, part, tile(thread)); });
    const Part all = team.part(0, 1);
    if constexpr (Base::kSecond > 0) {
      if (options.mask != nullptr) this->mask_middle(i, step, all);
      multiply_rows(i, tracks[i].middle, sizes.hidden_row, w + Base::kFirst * sizes.hidden * sizes.proj,
                    Base::kSecond * sizes.hidden, sizes.hidden);
      each_part(team, [&](const Part& part, int thread) { this->second_product(i, step, part, tile(thread)); });
    }
    if (a.w_hr != nullptr) {
      multiply_rows(i, tracks[i].middle, sizes.hidden_row,
                    static_cast<const T*>(a.w_hr) + i * sizes.proj * sizes.hidden, sizes.proj, sizes.hidden);
      team.run([&](const Part& part, int thread) { this->project(i, step, part, tile(thread)); });
    }
    if (this->follows) this->follow(i, step, all);
    for (long b = 0; b < sizes.batch; ++b) this->finish(i, step, all, b);
  }

  void multiply_state(int i, const T* w) {
    if (options.mask == nullptr) {
      const T* h0 = static_cast<const T*>(a.h0) + i * sizes.batch * sizes.proj;
      multiply(i, h0, w, Base::kFirst * sizes.hidden, sizes.proj);
    } else {
      multiply_rows(i, tracks[i].factor[0], sizes.proj_row, w, Base::kFirst * sizes.hidden, sizes.proj);
    }
  }

  // Layer norm takes whole rows: one thread.
  template <class Work>
  void each_part(const StepTeam<A>& team, Work work) const {
    if (options.norm != nullptr) return work(team.part(0, 1), 0);
    team.run(work);
  }

  A* tile(int thread) const { return this->tiles + thread * Base::kTile; }

  void multiply(int i, const T* from, const T* w, long n, long k) {
    a.shape.gemm({from, w, product, sizes.batch, n, k, k, k, n, true, a.shape.dtype});
    tracks[i].done = product;
  }

  void multiply_rows(int i, const typename Base::State* from, long from_row, const T* w, long n, long k) {
    for (long b = 0; b < sizes.batch; ++b) convert(narrowed + b * k, from + b * from_row, k);
    multiply(i, narrowed, w, n, k);
  }

  Workspace products;
  T* product;   // [B, n]
  T* narrowed;  // [B, k] what is multiplied, where it does not lie in a tensor
};

template <class Cell, class T>
class BackwardStep : Backward<Cell, T> {
  using Base = Backward<Cell, T>;
  using Base::a, Base::options, Base::sizes, Base::tracks;
  using typename Base::A;
  static constexpr int G = Cell::G;

 public:
  explicit BackwardStep(const RecurrentBackward& args) : Base(args, false) {
    const long widest = sizes.proj > sizes.hidden ? sizes.proj : sizes.hidden;
    products.take(sizeof(T) * static_cast<size_t>(sizes.batch * widest));
    products.allocate();
    product = static_cast<T*>(products.take(0));
  }

  void run() {
    for (int i = 0; i < sizes.tracks; ++i) track(i);
  }

 private:
  void track(int i) {
    const StepTeam<A> team{sizes, a.shape.threads, this->barriers};
    const typename Base::BackStep step{{0, 0, {0, sizes.batch}, false}, 0, 0};
    const long h = sizes.hidden, p = sizes.proj;
    const Tile<A> through{tracks[i].through, sizes.proj_row, 0}, dm{tracks[i].dm, sizes.hidden_row, 0};
    const Part all = team.part(0, 1);
    const T* w = static_cast<const T*>(a.w_hh) + i * G * h * p;
    const void* own = Cell::kSplit ? a.d_recurrent : a.d_gates;
    const T* gates = static_cast<const T*>(options.norm == nullptr ? own : a.d_products) + i * G * h;
    const long row = sizes.tracks * G * h;
    for (long b = 0; b < sizes.batch; ++b) this->prepare_row(i, b);
    if (options.zones()) this->divide(i, step, all);
    if (a.w_hr != nullptr) {
      team.run([&](const Part& part, int) { this->projection(i, step, part); });
      add_product(static_cast<const T*>(a.d_proj) + i * p, sizes.tracks * p, static_cast<const T*>(a.w_hr) + i * p * h,
                  dm, h, p);
    }
    team.run([&](const Part& part, int) { this->last_gates(i, step, part); });
    if (options.norm != nullptr) this->last_products(i, step, all);
    if constexpr (Base::kSecond > 0) {
      const long first = Base::kFirst * h;
      add_product(gates + first, row, w + first * p, dm, h, Base::kSecond * h);
      if (options.mask != nullptr) this->mask_middle(i, step, all);
      team.run([&](const Part& part, int) { this->first_gates(i, step, part); });
      if (options.norm != nullptr) this->first_products(i, step, all);
    }
    add_product(gates, row, w, through, p, Base::kFirst * h);
    if (options.zones() || options.mask != nullptr) this->join(i, step, all);
    for (long b = 0; b < sizes.batch; ++b) this->finish(i, all, b);
  }

  // to[B, n] += from[B, k] w[k, n]
  void add_product(const T* from, long from_row, const T* w, Tile<A> to, long n, long k) {
    constexpr long kLanes = Lanes<A>::kCount;
    a.shape.gemm({from, w, product, sizes.batch, n, k, from_row, n, n, false, a.shape.dtype});
    for (long b = 0; b < sizes.batch; ++b) {
      for (long u = 0; u < n; u += kLanes) {
        const Block<false> lanes{sizes.lanes(n, u / kLanes)};
        A* at = to.data + b * to.row + u;
        store(at, load(at) + lanes.load(product + b * n + u));
      }
    }
  }

  Workspace products;
  T* product;  // [B, n]
};

}  // namespace fusednn::cpu::FUSEDNN_ISA
