// Attention of few queries: keys and values are read once, where they lie, by all queries that share their head. A task
// is a part of the keys; the last one of a head merges its parts by their LSE, in their order. Included by isa/all.h
// after attention.h.

namespace fusednn::cpu::FUSEDNN_ISA {

constexpr long kFewRows = 8;     // queries of a key head, at most
constexpr long kPartKeys = 512;  // of a task, whatever the threads: so are the bits

template <class T>
struct AttentionFewJob : Attention<T> {
  using Base = Attention<T>;
  using A = AccOf<T>;
  using V = Vec<A>;
  using Base::kLanes;
  using typename Base::Row;
  using typename Base::Sum;

  const AttentionForward& a;
  long rows, parts;          // of a key head, at most
  A* partial = nullptr;      // [S, N / G, parts, rows, partial_row()]: weighted values, maximum, sum
  long* finished = nullptr;  // [S, N / G], parts

  explicit AttentionFewJob(const AttentionForward& args) : Base{args.shape, args.in}, a(args) {
    rows = this->longest(args.shape.starts_q, args.shape.queries) * this->group();
    parts = this->longest(args.shape.starts_k, args.shape.keys) / kPartKeys + 1;
  }

  long key_heads() const { return this->s.sequences * this->s.key_heads; }
  long tasks() const { return key_heads() * parts; }
  long partial_row() const { return Base::padded(this->s.value_size) + 2; }
  A* partial_of(long key_head, long part, long row) const {
    return partial + ((key_head * parts + part) * rows + row) * partial_row();
  }

  struct Memory {
    A *query, *scores, *factors;
    bool* keep;
    size_t bytes;

    Memory(const AttentionFewJob& job, char* at) {
      Carver carve{at};
      query = carve.take<A>(job.rows * Base::padded(job.s.size)), scores = carve.take<A>(job.rows * kPartKeys);
      factors = carve.take<A>(kPartKeys), keep = carve.take<bool>(kPartKeys);
      bytes = carve.used;
    }
  };

  // Query `row` of those that share a key head.
  struct Query {
    AttentionHead head;
    long i;
  };
  Query query_of(long key_head, long row) const {
    const long sequence = key_head / this->s.key_heads, first = key_head % this->s.key_heads * this->group();
    const long queries = this->head_of(sequence, first).queries;
    return {this->head_of(sequence, first + row / queries), row % queries};
  }

  void task(Memory& m, long n) const {
    const long key_head = n / parts, part = n % parts;
    const AttentionHead h = this->head_of(key_head / this->s.key_heads, key_head % this->s.key_heads * this->group());
    const long count = h.queries * this->group();
    const Range seen = this->visible(h, 0, h.queries - 1), columns = Base::vectors_of(seen);
    const long used = columns.size() > kPartKeys ? (columns.size() + kPartKeys - 1) / kPartKeys : 1;
    if (part >= used || count == 0) return;
    const long begin = columns.begin + part * kPartKeys;
    const Range own = Base::common(columns, {begin, begin + kPartKeys});
    weigh_values<kFewRows>(m, key_head, part, count, own, Base::common(seen, own));
    if (__atomic_add_fetch(finished + key_head, 1, __ATOMIC_ACQ_REL) < used) return;
    for (long row = 0; row < count; ++row) merge(key_head, used, row);
  }

  // One part for `count` queries: columns are the vectors that hold the keys.
  template <int kRows>
  void weigh_values(Memory& m, long key_head, long part, long count, Range columns, Range keys) const {
    if constexpr (kRows > 1) {
      if (count < kRows) return weigh_values<kRows - 1>(m, key_head, part, count, columns, keys);
    }
    const AttentionShape& s = this->s;
    const Heads &key = this->in.key, &value = this->in.value, &query = this->in.query;
    const AttentionHead shared = query_of(key_head, 0).head;
    for (long r = 0; r < kRows; ++r) {
      const Query q = query_of(key_head, r);
      Base::scaled(Base::rows_of(query, q.head.batch, q.head.head, q.head.first_query + q.i), query.row, 1, s.size,
                   static_cast<A>(s.scale), m.query + r * Base::padded(s.size), 0);
    }
    multiply_keys<kRows>(m, Base::rows_of(key, shared.batch, shared.shared, shared.first_key + columns.begin),
                         keys.end - columns.begin);
    for (long r = 0; r < kRows; ++r) {
      const Query q = query_of(key_head, r);
      const Range visible = Base::common(this->visible(q.head, q.i, q.i), keys);
      const Row row{q.head, q.i, visible, Base::vectors_of(visible), m.scores + r * kPartKeys - columns.begin, nullptr};
      const Sum sum = this->weights(row, -__builtin_inf(), columns, m.keep, m.factors);
      A* to = partial_of(key_head, part, r);
      Base::clear(to, partial_row());
      to[partial_row() - 2] = sum.top, to[partial_row() - 1] = sum.total;
    }
    multiply_values<kRows>({m.scores + (keys.begin - columns.begin), kPartKeys},
                           Base::rows_of(value, shared.batch, shared.shared, shared.first_key + keys.begin),
                           keys.size(), {partial_of(key_head, part, 0), partial_row(), 0});
  }

  // Scores of neighbouring keys: dot products with the rows of K.
  template <int kRows>
  void multiply_keys(Memory& m, const T* key, long count) const {
    const long size = this->s.size, row = Base::padded(size);
    for (long j0 = 0; j0 < count; j0 += kLanes) {
      V sums[kRows][kLanes] = {};
      for (long j = j0; j < count && j < j0 + kLanes; ++j) {
        V sum[kRows] = {};
        each_vector<A>(0, size, [&](auto part, long u) {
          const V k = part.load(key + j * this->in.key.row + u);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; ++r) sum[r] += part.load(m.query + r * row + u) * k;
        });
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) sums[r][j - j0] = sum[r];
      }
      for (int r = 0; r < kRows; ++r) store(m.scores + r * kPartKeys + j0, sums_across(sums[r]));
    }
  }

  // to += w V, slice by slice, as product.h does.
  template <int kRows>
  void multiply_values(Rows<A> w, const T* value, long count, Tile<A> to) const {
    constexpr int kWide = kRows * 4 <= FUSEDNN_ACCUMULATORS ? 4 : kRows * 2 <= FUSEDNN_ACCUMULATORS ? 2 : 1;
    for (long j = 0; j < count; j += kSlice) {
      const long length = count - j < kSlice ? count - j : kSlice;
      const T* from = value + j * this->in.value.row;
      long u = 0;
      for (; u + kWide * kLanes <= this->s.value_size; u += kWide * kLanes) {
        multiply_slice<kRows, kWide>(Block<true>{}, {w.data + j, w.row}, from + u, length, {to.data + u, to.row, 0});
      }
      each_vector<A>(u, this->s.value_size, [&](auto part, long v) {
        multiply_slice<kRows, 1>(part, {w.data + j, w.row}, from + v, length, {to.data + v, to.row, 0});
      });
    }
  }

  template <int kRows, int kWide, class Part>
  void multiply_slice(Part part, Rows<A> w, const T* value, long count, Tile<A> to) const {
    V sum[kRows][kWide] = {};
    for (long j = 0; j < count; ++j) {
#pragma GCC unroll 8
      for (int c = 0; c < kWide; ++c) {
        const V v = part.load(value + j * this->in.value.row + c * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) sum[r][c] += w.data[r * w.row + j] * v;
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kWide; ++c) {
        A* at = to.data + r * to.row + c * kLanes;
        store(at, load(at) + sum[r][c]);
      }
    }
  }

  // Output and LSE of a query from its parts and the sink.
  void merge(long key_head, long used, long row) const {
    const Query q = query_of(key_head, row);
    const long distance = rows * partial_row(), end = used * distance;
    A *values = partial_of(key_head, 0, row), *tops = values + partial_row() - 2, *totals = tops + 1;
    const A lowest = -__builtin_inf(), z = this->sink(q.head);
    Sum sum{z, 0, 0};
    for (long p = 0; p < end; p += distance) {
      if (totals[p] != 0 && tops[p] > sum.top) sum.top = tops[p];
    }
    if (sum.top == lowest) sum.top = 0;
    if (z != lowest) sum.total = Base::exp_one(z - sum.top);
    for (long p = 0; p < end; p += distance) {
      tops[p] = totals[p] == 0 ? A(0) : Base::exp_one(tops[p] - sum.top);  // from here on the part's factor
      sum.total += tops[p] * totals[p];
    }
    const A inverse = this->finish(a, q.head, q.i, sum);
    T* out = Base::rows_to(a.out, q.head.batch, q.head.head, q.head.first_query + q.i);
    each_vector<A>(0, this->s.value_size, [&](auto part, long u) {
      V x{};
      for (long p = 0; p < end; p += distance) x += tops[p] * load(values + p + u);
      part.store(out + u, x * inverse);
    });
  }
};

template <class T>
void attention_few_of(AttentionFewJob<T>& job) {
  using A = AccOf<T>;
  Workspace space;
  for (int pass = 0; pass < 2; ++pass) {
    job.partial =
        static_cast<A*>(space.take(sizeof(A) * static_cast<size_t>(job.tasks() * job.rows * job.partial_row())));
    job.finished = static_cast<long*>(space.take(sizeof(long) * static_cast<size_t>(job.key_heads())));
    if (pass == 0) space.allocate();
  }
  for (long n = 0; n < job.key_heads(); ++n) job.finished[n] = 0;
  share_tasks(job, job.tasks(), job.s.threads, typename AttentionFewJob<T>::Memory(job, nullptr).bytes);
}

template <class T>
void attention_forward_of(const AttentionForward& args) {
  AttentionFewJob<T> few(args);
  if (few.rows <= kFewRows) return attention_few_of(few);
  using Job = AttentionForwardJob<T>;
  const Job job(args);
  share_tasks(job, job.tasks(), args.shape.threads, typename Job::Memory(job, nullptr).bytes);
}

}  // namespace fusednn::cpu::FUSEDNN_ISA
