// Attention: what forward and backward share, and forward. A thread takes a block of queries of one head at a time,
// with the scores of all keys that the block sees: equations in docs/kernels/attention.md. Included by isa/all.h after
// additive.h.

namespace fusednn::cpu::FUSEDNN_ISA {

constexpr long kScores = 1 << 16;                      // of a block: they stay in the second cache
constexpr long kDotSlice = 16;                         // of E
constexpr long kLeastQueries = 12, kMostQueries = 48;  // of a block

// Arrays of one thread: with `at` null it counts their bytes.
struct Carver {
  char* at;
  size_t used = 0;

  template <class A>
  A* take(long count) {
    A* found = at == nullptr ? nullptr : reinterpret_cast<A*>(at + used);
    used += static_cast<size_t>(round_up(count * static_cast<long>(sizeof(A)), kCacheLine));
    return found;
  }
};

// One head of one sequence.
struct AttentionHead {
  long sequence, batch, shared, head;                    // shared: of the keys
  long first_query, first_key, queries, keys, position;  // position: of query 0 among the keys
};

template <class T>
struct Attention {
  using A = AccOf<T>;
  using V = Vec<A>;
  static constexpr long kLanes = Lanes<A>::kCount;

  const AttentionShape& s;
  const AttentionInputs& in;

  static long padded(long n) { return round_up(n, kLanes); }
  static long strided(long n) { return padded(n) + kLanes; }  // a distance between rows, no power of two

  long group() const { return s.key_heads == 0 ? 0 : s.heads / s.key_heads; }

  AttentionHead head_of(long sequence, long head) const {
    const bool packed = s.starts_q != nullptr;
    AttentionHead h{sequence, packed ? 0 : sequence, head / group(), head, 0, 0, s.queries, s.keys, 0};
    if (packed) {
      h.first_query = s.starts_q[sequence], h.first_key = s.starts_k[sequence];
      h.queries = s.starts_q[sequence + 1] - h.first_query, h.keys = s.starts_k[sequence + 1] - h.first_key;
    }
    if (s.bottom_right) h.position = h.keys - h.queries;
    return h;
  }

  long longest(const int32_t* starts, long all) const {
    if (starts == nullptr) return all;
    long most = 0;
    for (long i = 0; i < s.sequences; ++i) most = starts[i + 1] - starts[i] > most ? starts[i + 1] - starts[i] : most;
    return most;
  }

  long block_rows(long longest_keys) const {
    if (s.rows > 0) return s.rows < kMostQueries ? s.rows : kMostQueries;
    long rows = kScores / (longest_keys + 1);
    if (s.left >= 0 && s.right >= 0) rows = (s.left + s.right + 1) / 2;  // hidden pairs cost as much as others
    return rows < kLeastQueries ? kLeastQueries : rows > kMostQueries ? kMostQueries : rows;
  }

  // Where query i of a head lies in [B, N, M].
  long index_of(const AttentionHead& h, long i) const {
    return (h.batch * s.heads + h.head) * s.queries + h.first_query + i;
  }

  // {0, 0} where nothing is.
  static Range common(Range a, Range b) {
    const long begin = a.begin > b.begin ? a.begin : b.begin, end = a.end < b.end ? a.end : b.end;
    return begin < end ? Range{begin, end} : Range{0, 0};
  }

  // Keys that queries from `first` to `last` see.
  Range visible(const AttentionHead& h, long first, long last) const {
    const long from = s.left < 0 ? 0 : first + h.position - s.left;
    const long to = s.right < 0 ? h.keys : last + h.position + s.right + 1;
    return common({0, h.keys}, {from, to});
  }

  static const T* rows_of(const Heads& x, long batch, long head, long row) {
    return static_cast<const T*>(x.data) + batch * x.batch + head * x.head + row * x.row;
  }
  static T* rows_to(const Heads& x, long batch, long head, long row) {
    return const_cast<T*>(rows_of(x, batch, head, row));
  }

  // Panels whose lanes are the rows of x, or its columns.
  void pack_by_row(const T* x, long row, long count, const Panels<A>& to) const {
    for (long block = 0; block * kLanes < count; ++block) pack_rows(x, row, count, block, to, to.panel(block));
  }
  void pack_by_column(const T* x, long row, long columns, const Panels<A>& to) const {
    for (long block = 0; block < to.blocks; ++block) pack_columns(x, row, columns, block, to, to.panel(block));
  }

  // Room for panels of up to `units`; `panels_of` gives the part that a head needs.
  static Panels<A> panels_of(A* data, long units, long k) { return {data, padded(units) / kLanes, k, 1}; }

  // c += a w for some blocks of w and k elements from k0 on.
  static void product(long rows, Rows<A> a, const Panels<A>& w, Range blocks, long k0, long k, Tile<A> c) {
    walk_panels<1>(rows, blocks, false, [&](long block, long count) {
      const Tile<A> to{c.data + (block - blocks.begin) * c.panel, c.row, c.panel};
      const Panels<A> part{w.panel(block) + k0 * kLanes, count, k, 1, w.pad + w.k - k};
      multiply_group<A, 1>(rows, a, part, 0, count, to, to);
    });
  }

  // Scores: a row's sums over E in short slices, whose rounding errors grow apart.
  static void dots(long rows, Rows<A> a, const Panels<A>& w, Range blocks, long k, Tile<A> c) {
    for (long k0 = 0; k0 < k; k0 += kDotSlice) {
      product(rows, {a.data + k0, a.row}, w, blocks, k0, k - k0 < kDotSlice ? k - k0 : kDotSlice, c);
    }
  }

  static void clear(A* x, long count) { __builtin_memset(x, 0, sizeof(A) * static_cast<size_t>(count)); }

  // Rows of x times a factor.
  static void scaled(const T* x, long row, long rows, long columns, A factor, A* to, long to_row) {
    for (long i = 0; i < rows; ++i) {
      each_vector<A>(0, columns,
                     [&](auto part, long u) { store(to + i * to_row + u, factor * part.load(x + i * row + u)); });
    }
  }

  // One row of scores: the keys from `columns.begin` (a multiple of the lanes) to `columns.end`.
  struct Row {
    const AttentionHead& head;
    long i;         // query
    Range keys;     // visible to it
    Range vectors;  // those that hold them, from and to multiples of the lanes
    A* s;           // of key 0
    A* factor;      // written, of key 0: the softcap's derivative; null: not wanted
  };

  static Range vectors_of(Range keys) { return {keys.begin / kLanes * kLanes, padded(keys.end)}; }

  A slope(const AttentionHead& h) const {
    return in.slopes == nullptr ? A(0) : static_cast<const A*>(in.slopes)[h.sequence * s.heads + h.head];
  }

  // How far key j lies from query i, for each lane.
  static V distance(const AttentionHead& h, long i, long j) {
    V d;
    for (int lane = 0; lane < kLanes; ++lane) d[lane] = static_cast<A>(lane);
    d = d + static_cast<A>(j - i - h.position);
    return d < 0 ? -d : d;
  }

  // Scores with all modifiers, in place; -inf where the key is hidden.
  void modify(const Row& r) const {
    if (s.softcap != 0) soften(r);
    if (in.slopes != nullptr) {
      const A m = slope(r.head);
      for (long j = r.vectors.begin; j < r.vectors.end; j += kLanes) {
        store(r.s + j, load(r.s + j) - m * distance(r.head, r.i, j));
      }
    }
    if (in.seen != nullptr || in.bias != nullptr) mask(r);
    for (long j = r.vectors.begin; j < r.keys.begin; ++j) r.s[j] = -__builtin_inf();
    for (long j = r.keys.end; j < r.vectors.end; ++j) r.s[j] = -__builtin_inf();
  }

  void soften(const Row& r) const {
    const A c = static_cast<A>(s.softcap), inverse = 1 / c;
    for (long j = r.vectors.begin; j < r.vectors.end; j += kLanes) {
      const V t = cells::tanh(load(r.s + j) * inverse);
      store(r.s + j, c * t);
      if (r.factor != nullptr) store(r.factor + j, 1 - t * t);
    }
  }

  void mask(const Row& r) const {
    const int64_t* d = in.mask_strides;
    const long at = r.head.batch * d[0] + r.head.head * d[1] + r.i * d[2];
    for (long j = r.keys.begin; in.seen != nullptr && j < r.keys.end; ++j) {
      if (!in.seen[at + j * d[3]]) r.s[j] = -__builtin_inf();
    }
    for (long j = r.keys.begin; in.bias != nullptr && j < r.keys.end; ++j) {
      r.s[j] += static_cast<const A*>(in.bias)[at + j * d[3]];
    }
  }

  // A row's maximum (0 if it is -inf) and the sum of the exponentials, with the sink.
  struct Sum {
    A top, total, sink;  // sink: its part of the total

    A inverse() const { return total == 0 ? A(0) : 1 / total; }
    A lse() const { return top + static_cast<A>(__builtin_log(total)); }
  };

  A sink(const AttentionHead& h) const {
    return in.sink == nullptr ? -__builtin_inf() : static_cast<const A*>(in.sink)[h.head];
  }

  // Exponentials of modified scores, in place; z: the sink, -inf for none.
  Sum weigh(const Row& r, A z) const {
    const A lowest = -__builtin_inf();
    V most = V{} + lowest;
    for (long j = r.vectors.begin; j < r.vectors.end; j += kLanes) {
      const V x = load(r.s + j);
      most = x > most ? x : most;
    }
    Sum sum{z, 0, 0};
    for (int lane = 0; lane < kLanes; ++lane) sum.top = most[lane] > sum.top ? most[lane] : sum.top;
    if (sum.top == lowest) sum.top = 0;
    if (z != lowest) sum.sink = exp_one(z - sum.top);
    sum.total = sum.sink + exponentials(r, sum.top);
    return sum;
  }

  // In place of modified scores; returns their sum.
  static A exponentials(const Row& r, A top) {
    V totals{};
    for (long j = r.vectors.begin; j < r.vectors.end; j += kLanes) {
      const V e = cells::exp(load(r.s + j) - top);
      store(r.s + j, e);
      totals += e;
    }
    return across(totals);
  }

  static A exp_one(A x) { return cells::exp(V{} + x)[0]; }

  static A across(V v) {
    A sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += v[lane];
    return sum;
  }

  // Dropout's factor of each visible key: 0 or 1 / (1 - p). `keep` has room for as many.
  void draw(const Row& r, bool* keep, A* factors) const {
    const A scale = s.dropout_p < 1 ? static_cast<A>(1 / (1 - s.dropout_p)) : A(0);
    keep_row(s.seed, dropout_limit(s.dropout_p), r.head.sequence * s.heads + r.head.head, r.i, r.keys.begin, r.keys.end,
             keep);
    for (long j = r.vectors.begin; j < r.vectors.end; ++j) factors[j] = 0;
    for (long j = r.keys.begin; j < r.keys.end; ++j) factors[j] = keep[j - r.keys.begin] ? scale : A(0);
  }

  // A row's weights with all modifiers and dropout, not yet divided by their sum; zero in the columns that it does not
  // see. `keep` and `factors` have room for the columns.
  Sum weights(const Row& r, A z, Range columns, bool* keep, A* factors) const {
    modify(r);
    const Sum sum = weigh(r, z);
    if (s.dropout_p > 0) {
      factors -= columns.begin;
      draw(r, keep, factors);
      for (long j = r.vectors.begin; j < r.vectors.end; j += kLanes) store(r.s + j, load(r.s + j) * load(factors + j));
    }
    clear_hidden(r.s, columns, r.vectors);
    return sum;
  }

  // What the weights must be multiplied by, once the row's LSE is written.
  A finish(const AttentionForward& a, const AttentionHead& h, long i, const Sum& sum) const {
    static_cast<A*>(a.lse)[index_of(h, i)] = sum.lse();
    return sum.inverse();
  }

  // Zero what of a block's columns the row does not see.
  static void clear_hidden(A* x, Range columns, Range vectors) {
    if (vectors.size() == 0) vectors = {columns.end, columns.end};
    for (long j = columns.begin; j < vectors.begin; j += kLanes) store(x + j, V{});
    for (long j = vectors.end; j < columns.end; j += kLanes) store(x + j, V{});
  }
};

// Runs job.task(thread's memory, n) for n below `tasks`, each on the thread that is free.
template <class Job>
void share_tasks(const Job& job, long tasks, int threads, size_t bytes_each) {
  if (tasks == 0) return;
  const int team = tasks < threads ? static_cast<int>(tasks) : threads;
  Workspace space;
  space.take(bytes_each * static_cast<size_t>(team));
  space.allocate();
  struct Call {
    const Job* job;
    char* memory;
    size_t bytes_each;
    long tasks, next;
  } call{&job, static_cast<char*>(space.take(0)), bytes_each, tasks, 0};
  run_team(
      team,
      [](void* context, int thread, int) {
        Call& c = *static_cast<Call*>(context);
        typename Job::Memory memory(*c.job, c.memory + c.bytes_each * static_cast<size_t>(thread));
        for (;;) {
          const long task = __atomic_fetch_add(&c.next, 1, __ATOMIC_RELAXED);
          if (task >= c.tasks) return;
          c.job->task(memory, task);
        }
      },
      &call);
}

template <class T>
struct AttentionForwardJob : Attention<T> {
  using Base = Attention<T>;
  using A = AccOf<T>;
  using V = Vec<A>;
  using Base::kLanes;
  using typename Base::Row;

  const AttentionForward& a;
  long longest_keys, rows, blocks;  // blocks: of the longest sequence

  explicit AttentionForwardJob(const AttentionForward& args) : Base{args.shape, args.in}, a(args) {
    longest_keys = this->longest(args.shape.starts_k, args.shape.keys);
    rows = this->block_rows(longest_keys);
    blocks = (this->longest(args.shape.starts_q, args.shape.queries) + rows - 1) / rows;
  }

  struct Memory {
    A *keys, *values, *scores, *query, *out, *factors;
    bool* keep;
    long packed = -1;  // sequence and head that the panels hold
    size_t bytes;

    Memory(const AttentionForwardJob& job, char* at) {
      const AttentionShape& s = job.s;
      Carver carve{at};
      const long span = Base::strided(job.longest_keys);
      keys = carve.take<A>(span * s.size);
      values = carve.take<A>(job.longest_keys * Base::padded(s.value_size));
      scores = carve.take<A>(job.rows * span);
      query = carve.take<A>(job.rows * Base::strided(s.size));
      out = carve.take<A>(job.rows * Base::strided(s.value_size));
      factors = carve.take<A>(span);
      keep = carve.take<bool>(span);
      bytes = carve.used;
    }
  };

  long tasks() const { return this->s.sequences * this->s.heads * blocks; }

  void task(Memory& m, long n) const {
    const AttentionHead h = this->head_of(n / blocks / this->s.heads, n / blocks % this->s.heads);
    const long first = n % blocks * rows, end = first + rows < h.queries ? first + rows : h.queries;
    if (first < end) block(m, h, first, end - first);
  }

  void block(Memory& m, const AttentionHead& h, long first, long count) const {
    const AttentionShape& s = this->s;
    const Panels<A> keys = Base::panels_of(m.keys, h.keys, s.size),
                    values = Base::panels_of(m.values, s.value_size, h.keys);
    if (m.packed != h.sequence * s.key_heads + h.shared) {
      m.packed = h.sequence * s.key_heads + h.shared;
      this->pack_by_row(Base::rows_of(this->in.key, h.batch, h.shared, h.first_key), this->in.key.row, h.keys, keys);
      this->pack_by_column(Base::rows_of(this->in.value, h.batch, h.shared, h.first_key), this->in.value.row,
                           s.value_size, values);
    }
    const Range seen = this->visible(h, first, first + count - 1), columns = Base::vectors_of(seen);
    const long span = Base::strided(columns.size()), wide = Base::strided(s.value_size), row = Base::strided(s.size);
    Base::scaled(Base::rows_of(this->in.query, h.batch, h.head, h.first_query + first), this->in.query.row, count,
                 s.size, static_cast<A>(s.scale), m.query, row);
    Base::clear(m.scores, count * span);
    Base::dots(count, {m.query, row}, keys, {columns.begin / kLanes, columns.end / kLanes}, s.size,
               {m.scores, span, kLanes});
    A inverse[kMostQueries];
    for (long r = 0; r < count; ++r) {
      const Range visible = this->visible(h, first + r, first + r);
      const Row row_of{h, first + r, visible, Base::vectors_of(visible), m.scores + r * span - columns.begin, nullptr};
      inverse[r] = this->finish(a, h, first + r, this->weights(row_of, this->sink(h), columns, m.keep, m.factors));
    }
    Base::clear(m.out, count * wide);
    Base::product(count, {m.scores + (seen.begin - columns.begin), span}, values, {0, values.blocks}, seen.begin,
                  seen.size(), {m.out, wide, kLanes});
    T* out = Base::rows_to(a.out, h.batch, h.head, h.first_query + first);
    for (long r = 0; r < count; ++r) {
      each_vector<A>(0, s.value_size, [&](auto part, long u) {
        part.store(out + r * a.out.row + u, load(m.out + r * wide + u) * inverse[r]);
      });
    }
  }
};

}  // namespace fusednn::cpu::FUSEDNN_ISA
