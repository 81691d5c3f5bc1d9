// Gradients of attention. A thread takes all queries that share one key head of one sequence, block by block, and sums
// dK and dV of that head in its own memory: nothing is shared, so results repeat. Included by isa/all.h after
// attention.h.

namespace fusednn::cpu::FUSEDNN_ISA {

template <class T>
struct AttentionBackwardJob : Attention<T> {
  using Base = Attention<T>;
  using A = AccOf<T>;
  using V = Vec<A>;
  using Base::kLanes;
  using typename Base::Row;

  const AttentionBackward& a;
  long longest_keys, rows;

  explicit AttentionBackwardJob(const AttentionBackward& args) : Base{args.shape, args.in}, a(args) {
    longest_keys = this->longest(args.shape.starts_k, args.shape.keys);
    rows = this->block_rows(longest_keys);
  }

  // Of a thread. dK and dV are summed transposed, [E, K], so that a block's ds and P serve as panels as they are.
  struct Memory {
    A *keys, *values, *key_columns;  // panels with lanes of keys, of keys, of E
    A *d_key, *d_value;              // transposed
    A *query, *query_columns;        // scaled [rows, E], and [E, rows]
    A *grad, *grad_columns;          // of the output, likewise
    A *scores, *grad_weights;        // [rows, keys]
    A *d_scores, *weights;           // panels with lanes of keys: ds, and P with dropout
    A *softening, *d_query, *factors;
    bool* keep;
    size_t bytes;

    Memory(const AttentionBackwardJob& job, char* at) {
      const AttentionShape& s = job.s;
      Carver carve{at};
      const long span = Base::strided(job.longest_keys), rows = job.rows;
      keys = carve.take<A>(span * s.size), values = carve.take<A>(span * s.value_size);
      key_columns = carve.take<A>(job.longest_keys * Base::padded(s.size));
      d_key = carve.take<A>(span * s.size), d_value = carve.take<A>(span * s.value_size);
      query = carve.take<A>(rows * Base::strided(s.size)), query_columns = carve.take<A>(rows * s.size);
      grad = carve.take<A>(rows * Base::strided(s.value_size)), grad_columns = carve.take<A>(rows * s.value_size);
      scores = carve.take<A>(rows * span), grad_weights = carve.take<A>(rows * span);
      d_scores = carve.take<A>(rows * span), weights = carve.take<A>(rows * span);
      softening = carve.take<A>(span), d_query = carve.take<A>(rows * Base::strided(s.size));
      factors = carve.take<A>(span), keep = carve.take<bool>(span);
      bytes = carve.used;
    }
  };

  // Sums of a head over its queries.
  struct Totals {
    A slope, sink;
  };

  long tasks() const { return this->s.sequences * this->s.key_heads; }

  void task(Memory& m, long n) const {
    const AttentionShape& s = this->s;
    const long sequence = n / s.key_heads, shared = n % s.key_heads, group = this->group();
    const AttentionHead any = this->head_of(sequence, shared * group);
    const T *key = Base::rows_of(this->in.key, any.batch, shared, any.first_key),
            *value = Base::rows_of(this->in.value, any.batch, shared, any.first_key);
    const long span = Base::strided(any.keys);
    this->pack_by_row(key, this->in.key.row, any.keys, Base::panels_of(m.keys, any.keys, s.size));
    this->pack_by_row(value, this->in.value.row, any.keys, Base::panels_of(m.values, any.keys, s.value_size));
    this->pack_by_column(key, this->in.key.row, s.size, Base::panels_of(m.key_columns, s.size, any.keys));
    Base::clear(m.d_key, span * s.size);
    Base::clear(m.d_value, span * s.value_size);
    for (long head = shared * group; head < (shared + 1) * group; ++head) {
      const AttentionHead h = this->head_of(sequence, head);
      Totals totals{};
      for (long i = 0; i < h.queries; i += rows) block(m, h, i, i + rows < h.queries ? rows : h.queries - i, totals);
      if (a.d_slopes != nullptr) static_cast<A*>(a.d_slopes)[sequence * s.heads + head] = totals.slope;
      if (a.d_sink != nullptr) static_cast<A*>(a.d_sink)[sequence * s.heads + head] = totals.sink;
    }
    write_transposed(m.d_key, span, s.size, any, a.d_key);
    write_transposed(m.d_value, span, s.value_size, any, a.d_value);
  }

  // A gradient [E, keys] as rows of `to`.
  static void write_transposed(const A* from, long row, long size, const AttentionHead& h, const Heads& to) {
    if (to.data == nullptr) return;
    T* out = Base::rows_to(to, h.batch, h.shared, h.first_key);
    for (long j0 = 0; j0 < h.keys; j0 += kLanes) {
      for (long u0 = 0; u0 < size; u0 += kLanes) {
        V part[kLanes];
        for (long u = 0; u < kLanes; ++u) part[u] = u0 + u < size ? load(from + (u0 + u) * row + j0) : V{};
        transpose(part);
        const Block<false> lanes{static_cast<int>(size - u0 < kLanes ? size - u0 : kLanes)};
        for (long j = j0; j < h.keys && j < j0 + kLanes; ++j) lanes.store(out + j * to.row + u0, part[j - j0]);
      }
    }
  }

  static void transpose_block(const A* from, long row, long count, long columns, A* to) {
    for (long i = 0; i < count; ++i) {
      for (long u = 0; u < columns; ++u) to[u * count + i] = from[i * row + u];
    }
  }

  void block(Memory& m, const AttentionHead& h, long first, long count, Totals& totals) const {
    const AttentionShape& s = this->s;
    const Range seen = this->visible(h, first, first + count - 1), columns = Base::vectors_of(seen);
    const Range panels{columns.begin / kLanes, columns.end / kLanes};
    const long span = Base::strided(columns.size()), row = Base::strided(s.size),
               value_row = Base::strided(s.value_size);
    const Heads &query = this->in.query, &grad = a.grad_out;
    Base::scaled(Base::rows_of(query, h.batch, h.head, h.first_query + first), query.row, count, s.size,
                 static_cast<A>(s.scale), m.query, row);
    Base::scaled(Base::rows_of(grad, h.batch, h.head, h.first_query + first), grad.row, count, s.value_size, 1, m.grad,
                 value_row);
    transpose_block(m.query, row, count, s.size, m.query_columns);
    transpose_block(m.grad, value_row, count, s.value_size, m.grad_columns);
    Base::clear(m.scores, count * span);
    Base::clear(m.grad_weights, count * span);
    Base::product(count, {m.query, row}, Base::panels_of(m.keys, h.keys, s.size), panels, 0, s.size,
                  {m.scores, span, kLanes});
    Base::product(count, {m.grad, value_row}, Base::panels_of(m.values, h.keys, s.value_size), panels, 0, s.value_size,
                  {m.grad_weights, span, kLanes});
    for (long r = 0; r < count; ++r) {
      const Range visible = this->visible(h, first + r, first + r);
      const long at = r * span - columns.begin;
      A* softening = s.softcap == 0 ? nullptr : m.softening - columns.begin;
      const Row of{h, first + r, visible, Base::vectors_of(visible), m.scores + at, softening};
      differentiate(m, of, m.grad_weights + at, columns, r, count, totals);
    }
    const Panels<A> weights{m.weights, panels.size(), count, 1}, d_scores{m.d_scores, panels.size(), count, 1};
    const Range all{0, panels.size()};
    const long d_row = Base::strided(h.keys);
    Base::product(s.value_size, {m.grad_columns, count}, weights, all, 0, count,
                  {m.d_value + columns.begin, d_row, kLanes});
    Base::product(s.size, {m.query_columns, count}, d_scores, all, 0, count, {m.d_key + columns.begin, d_row, kLanes});
    if (a.d_query.data != nullptr) write_query(m, h, first, count, seen, m.scores + (seen.begin - columns.begin), span);
  }

  // dq = scale ds K.
  void write_query(Memory& m, const AttentionHead& h, long first, long count, Range seen, const A* ds,
                   long span) const {
    const long row = Base::strided(this->s.size);
    const Panels<A> keys = Base::panels_of(m.key_columns, this->s.size, h.keys);
    Base::clear(m.d_query, count * row);
    Base::product(count, {ds, span}, keys, {0, keys.blocks}, seen.begin, seen.size(), {m.d_query, row, kLanes});
    T* out = Base::rows_to(a.d_query, h.batch, h.head, h.first_query + first);
    for (long r = 0; r < count; ++r) {
      each_vector<A>(0, this->s.size, [&](auto part, long u) {
        part.store(out + r * a.d_query.row + u, load(m.d_query + r * row + u) * static_cast<A>(this->s.scale));
      });
    }
  }

  // One row: P from the scores, then ds in their place; both also into the panels of the block, whose row it is.
  // `g` is the gradient of the weights before dropout.
  void differentiate(Memory& m, const Row& r, A* g, Range columns, long row, long count, Totals& totals) const {
    this->modify(r);
    const auto sum = this->weigh(r);
    const A inverse = sum.inverse();
    const bool drops = this->s.dropout_p > 0;
    A* factors = m.factors - columns.begin;
    if (drops) this->draw(r, m.keep, factors);
    const auto panel = [&](A* panels, long j) { return panels + (j - columns.begin) * count + row * kLanes; };
    clear_panels(m, columns, r.vectors, panel);
    V products{};
    for (long j = r.vectors.begin; j < r.vectors.end; j += kLanes) {
      const V p = load(r.s + j) * inverse, keep = drops ? load(factors + j) : V{} + 1;
      const V gradient = load(g + j) * keep;
      store(r.s + j, p);
      store(g + j, gradient);
      store(panel(m.weights, j), p * keep);
      products += p * gradient;
    }
    A delta = Base::across(products);
    if (a.grad_lse != nullptr) delta -= lse_gradient(r);
    if (sum.total != 0) totals.sink -= sum.sink * inverse * delta;
    V distances{};
    for (long j = r.vectors.begin; j < r.vectors.end; j += kLanes) {
      V ds = load(r.s + j) * (load(g + j) - delta);
      if (a.d_slopes != nullptr) distances += ds * Base::distance(r.head, r.i, j);
      if (r.factor != nullptr) ds *= load(r.factor + j);
      store(r.s + j, ds);
      store(panel(m.d_scores, j), ds);
    }
    totals.slope -= Base::across(distances);
    Base::clear_hidden(r.s, columns, r.vectors);
  }

  A lse_gradient(const Row& r) const {
    const long row = (r.head.batch * this->s.heads + r.head.head) * this->s.queries + r.head.first_query + r.i;
    return static_cast<const A*>(a.grad_lse)[row];
  }

  template <class At>
  static void clear_panels(const Memory& m, Range columns, Range vectors, At panel) {
    for (long j = columns.begin; j < columns.end; j += kLanes) {
      if (j >= vectors.begin && j < vectors.end) continue;
      store(panel(m.weights, j), V{});
      store(panel(m.d_scores, j), V{});
    }
  }
};

template <class T>
void attention_backward_of(const AttentionBackward& args) {
  using Job = AttentionBackwardJob<T>;
  const Job job(args);
  share_tasks(job, job.tasks(), args.shape.threads, typename Job::Memory(job, nullptr).bytes);
}

}  // namespace fusednn::cpu::FUSEDNN_ISA
