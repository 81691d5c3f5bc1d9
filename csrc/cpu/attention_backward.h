// Gradients of attention. A task is a key head with all its queries; or, where those are fewer than the threads, first
// some queries with all keys, for dQ and the rows' terms, and then some keys with all queries, for dK and dV. Each sum
// is one thread's, in the order of the queries: its bits are the same whatever the tasks. Included by isa/all.h after
// attention_few.h.

namespace fusednn::cpu::FUSEDNN_ISA {

// What the gradients of a row's scores follow from, and the row's part in those of slope and sink.
template <class A>
struct RowTerms {
  A top, inverse, delta, slope, sink;
};

template <class T>
struct AttentionBackwardJob : Attention<T> {
  using Base = Attention<T>;
  using A = AccOf<T>;
  using V = Vec<A>;
  using Base::kLanes;
  using typename Base::Row;

  static constexpr long kLeastKeys = 128, kTasksEach = 4;  // keys of a task, and tasks of a thread, in the last pass

  const AttentionBackward& a;
  RowTerms<A>* terms;               // [B, N, M]
  bool of_queries, of_keys;         // what is computed: dQ and the terms; dK and dV
  long rows, blocks, held, ranges;  // blocks: of the longest sequence; held: keys of a task, of `ranges` a head

  AttentionBackwardJob(const AttentionBackward& args, RowTerms<A>* row_terms, bool queries, bool keys)
      : Base{args.shape, args.in}, a(args), terms(row_terms), of_queries(queries), of_keys(keys) {
    held = this->longest(args.shape.starts_k, args.shape.keys);
    rows = this->block_rows(held);
    ranges = 1;
    blocks = (this->longest(args.shape.starts_q, args.shape.queries) + rows - 1) / rows;
    if (!queries) {
      const long longest = held, share = longest * key_heads() / (kTasksEach * args.shape.threads);
      held = round_up(share < kLeastKeys ? kLeastKeys : share, Blocking<1>::kPanels * kLanes);
      ranges = (longest + held - 1) / held;
    }
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
    long packed = -1;  // key head that the panels hold, where tasks share it
    size_t bytes;

    Memory(const AttentionBackwardJob& job, char* at) {
      const AttentionShape& s = job.s;
      Carver carve{at};
      const long span = Base::strided(job.held), rows = job.rows;
      const long sums = job.of_keys ? span : 0, columns = job.of_queries ? job.held : 0;
      keys = carve.take<A>(span * s.size), values = carve.take<A>(span * s.value_size);
      key_columns = carve.take<A>(columns * Base::padded(s.size));
      d_key = carve.take<A>(sums * s.size), d_value = carve.take<A>(sums * s.value_size);
      query = carve.take<A>(rows * Base::strided(s.size)), query_columns = carve.take<A>(rows * s.size);
      grad = carve.take<A>(rows * Base::strided(s.value_size)), grad_columns = carve.take<A>(rows * s.value_size);
      scores = carve.take<A>(rows * span), grad_weights = carve.take<A>(rows * span);
      d_scores = carve.take<A>(rows * sums), weights = carve.take<A>(rows * sums);
      softening = carve.take<A>(span), d_query = carve.take<A>(rows * Base::strided(s.size));
      factors = carve.take<A>(span), keep = carve.take<bool>(span);
      bytes = carve.used;
    }
  };

  long key_heads() const { return this->s.sequences * this->s.key_heads; }
  long tasks() const { return of_keys ? key_heads() * ranges : this->s.sequences * this->s.heads * blocks; }

  // Whether two passes, of three and four products of a block instead of five, take less time than one.
  bool is_better_split() const {
    const long threads = this->s.threads, turns = (key_heads() + threads - 1) / threads;
    return blocks > 1 && 7 * key_heads() < 5 * threads * turns;
  }

  void task(Memory& m, long n) const {
    if (!of_keys) {
      const AttentionHead h = this->head_of(n / blocks / this->s.heads, n / blocks % this->s.heads);
      const long key_head = h.sequence * this->s.key_heads + h.shared;
      if (m.packed != key_head) pack(m, h, {0, h.keys});
      m.packed = key_head;
      return block(m, h, n % blocks * rows, {0, h.keys});
    }
    const long sequence = n / ranges / this->s.key_heads, shared = n / ranges % this->s.key_heads;
    const long first = shared * this->group();
    const AttentionHead any = this->head_of(sequence, first);
    const Range keys = Base::common({0, any.keys}, {n % ranges * held, (n % ranges + 1) * held});
    const long span = Base::strided(keys.size());
    pack(m, any, keys);
    Base::clear(m.d_key, span * this->s.size);
    Base::clear(m.d_value, span * this->s.value_size);
    for (long head = first; head < first + this->group(); ++head) {
      const AttentionHead h = this->head_of(sequence, head);
      for (long i = 0; i < h.queries; i += rows) block(m, h, i, keys);
    }
    write_transposed(m.d_key, span, this->s.size, any, keys, a.d_key);
    write_transposed(m.d_value, span, this->s.value_size, any, keys, a.d_value);
  }

  void pack(Memory& m, const AttentionHead& h, Range range) const {
    const AttentionShape& s = this->s;
    const long first = h.first_key + range.begin, count = range.size();
    const T *key = Base::rows_of(this->in.key, h.batch, h.shared, first),
            *value = Base::rows_of(this->in.value, h.batch, h.shared, first);
    this->pack_by_row(key, this->in.key.row, count, Base::panels_of(m.keys, count, s.size));
    this->pack_by_row(value, this->in.value.row, count, Base::panels_of(m.values, count, s.value_size));
    if (of_queries) {
      this->pack_by_column(key, this->in.key.row, s.size, Base::panels_of(m.key_columns, s.size, count));
    }
  }

  // A gradient [E, keys] as rows of `to`.
  static void write_transposed(const A* from, long row, long size, const AttentionHead& h, Range keys,
                               const Heads& to) {
    if (to.data == nullptr) return;
    T* out = Base::rows_to(to, h.batch, h.shared, h.first_key + keys.begin);
    for (long j0 = 0; j0 < keys.size(); j0 += kLanes) {
      for (long u0 = 0; u0 < size; u0 += kLanes) {
        V part[kLanes];
        for (long u = 0; u < kLanes; ++u) part[u] = u0 + u < size ? load(from + (u0 + u) * row + j0) : V{};
        transpose(part);
        const Block<false> lanes{static_cast<int>(size - u0 < kLanes ? size - u0 : kLanes)};
        for (long j = j0; j < keys.size() && j < j0 + kLanes; ++j) lanes.store(out + j * to.row + u0, part[j - j0]);
      }
    }
  }

  static void transpose_block(const A* from, long row, long count, long columns, A* to) {
    for (long i = 0; i < count; ++i) {
      for (long u = 0; u < columns; ++u) to[u * count + i] = from[i * row + u];
    }
  }

  // Queries from `first` on with those of the keys that they see.
  void block(Memory& m, const AttentionHead& h, long first, Range keys) const {
    const AttentionShape& s = this->s;
    const long count = first + rows < h.queries ? rows : h.queries - first;
    if (count <= 0) return;
    const Range seen = Base::common(this->visible(h, first, first + count - 1), keys), columns = Base::vectors_of(seen);
    if (!of_queries && seen.size() == 0) return;
    const long offset = columns.begin - keys.begin;
    const Range panels{offset / kLanes, (offset + columns.size()) / kLanes};
    const long span = Base::strided(columns.size()), row = Base::strided(s.size),
               value_row = Base::strided(s.value_size);
    const Heads &query = this->in.query, &grad = a.grad_out;
    Base::scaled(Base::rows_of(query, h.batch, h.head, h.first_query + first), query.row, count, s.size,
                 static_cast<A>(s.scale), m.query, row);
    Base::scaled(Base::rows_of(grad, h.batch, h.head, h.first_query + first), grad.row, count, s.value_size, 1, m.grad,
                 value_row);
    Base::clear(m.scores, count * span);
    Base::clear(m.grad_weights, count * span);
    Base::dots(count, {m.query, row}, Base::panels_of(m.keys, keys.size(), s.size), panels, s.size,
               {m.scores, span, kLanes});
    Base::dots(count, {m.grad, value_row}, Base::panels_of(m.values, keys.size(), s.value_size), panels, s.value_size,
               {m.grad_weights, span, kLanes});
    for (long r = 0; r < count; ++r) {
      const Range visible = Base::common(this->visible(h, first + r, first + r), keys);
      const long at = r * span - columns.begin;
      A* softening = s.softcap == 0 ? nullptr : m.softening - columns.begin;
      const Row of{h, first + r, visible, Base::vectors_of(visible), m.scores + at, softening};
      differentiate(m, of, m.grad_weights + at, columns, r, count);
    }
    if (of_keys) {
      transpose_block(m.query, row, count, s.size, m.query_columns);
      transpose_block(m.grad, value_row, count, s.value_size, m.grad_columns);
      const Panels<A> weights{m.weights, panels.size(), count, 1}, d_scores{m.d_scores, panels.size(), count, 1};
      const Range all{0, panels.size()};
      const long d_row = Base::strided(keys.size());
      Base::product(s.value_size, {m.grad_columns, count}, weights, all, 0, count, {m.d_value + offset, d_row, kLanes});
      Base::product(s.size, {m.query_columns, count}, d_scores, all, 0, count, {m.d_key + offset, d_row, kLanes});
    }
    if (of_queries && a.d_query.data != nullptr) {
      write_query(m, h, first, count, seen, m.scores + (seen.begin - columns.begin), span);
    }
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
  void differentiate(Memory& m, const Row& r, A* g, Range columns, long row, long count) const {
    RowTerms<A>& t = terms[this->index_of(r.head, r.i)];
    this->modify(r);
    typename Base::Sum sum{};
    if (of_queries) {
      sum = this->weigh(r, this->sink(r.head));
      t.top = sum.top, t.inverse = sum.inverse();
    } else {
      Base::exponentials(r, t.top);
    }
    const bool drops = this->s.dropout_p > 0;
    A* factors = m.factors - columns.begin;
    if (drops) this->draw(r, m.keep, factors);
    const auto panel = [&](A* to, long j) { return to + (j - columns.begin) * count + row * kLanes; };
    if (of_keys) clear_panels(m, columns, r.vectors, panel);
    V products{};
    for (long j = r.vectors.begin; j < r.vectors.end; j += kLanes) {
      const V p = load(r.s + j) * t.inverse, keep = drops ? load(factors + j) : V{} + 1;
      const V gradient = load(g + j) * keep;
      store(r.s + j, p);
      store(g + j, gradient);
      if (of_keys) store(panel(m.weights, j), p * keep);
      products += p * gradient;
    }
    if (of_queries) {
      t.delta = Base::across(products);
      if (a.grad_lse != nullptr) t.delta -= static_cast<const A*>(a.grad_lse)[this->index_of(r.head, r.i)];
      t.sink = sum.total == 0 ? A(0) : sum.sink * t.inverse * t.delta;
    }
    const A delta = t.delta;
    V distances{};
    for (long j = r.vectors.begin; j < r.vectors.end; j += kLanes) {
      V ds = load(r.s + j) * (load(g + j) - delta);
      if (a.d_slopes != nullptr) distances += ds * Base::distance(r.head, r.i, j);
      if (r.factor != nullptr) ds *= load(r.factor + j);
      store(r.s + j, ds);
      if (of_keys) store(panel(m.d_scores, j), ds);
    }
    if (of_queries) t.slope = Base::across(distances);
    Base::clear_hidden(r.s, columns, r.vectors);
  }

  template <class At>
  static void clear_panels(const Memory& m, Range columns, Range vectors, At panel) {
    for (long j = columns.begin; j < columns.end; j += kLanes) {
      if (j >= vectors.begin && j < vectors.end) continue;
      store(panel(m.weights, j), V{});
      store(panel(m.d_scores, j), V{});
    }
  }

  // Gradients of slopes and sink: sums over the queries of each head.
  void write_totals() const {
    for (long n = 0; n < this->s.sequences * this->s.heads; ++n) {
      const AttentionHead h = this->head_of(n / this->s.heads, n % this->s.heads);
      A slope = 0, sink = 0;
      for (long i = 0; i < h.queries; ++i) {
        slope -= terms[this->index_of(h, i)].slope, sink -= terms[this->index_of(h, i)].sink;
      }
      if (a.d_slopes != nullptr) static_cast<A*>(a.d_slopes)[n] = slope;
      if (a.d_sink != nullptr) static_cast<A*>(a.d_sink)[n] = sink;
    }
  }

  void run() const { share_tasks(*this, tasks(), this->s.threads, Memory(*this, nullptr).bytes); }
};

template <class T>
void attention_backward_of(const AttentionBackward& args) {
  using Job = AttentionBackwardJob<T>;
  using Terms = RowTerms<AccOf<T>>;
  const AttentionShape& s = args.shape;
  Workspace space;
  space.take(sizeof(Terms) * static_cast<size_t>(s.batch * s.heads * s.queries));
  space.allocate();
  Terms* terms = static_cast<Terms*>(space.take(0));
  const bool of_keys = args.d_key.data != nullptr || args.d_value.data != nullptr;
  const Job whole(args, terms, true, true);
  if (of_keys && !whole.is_better_split()) {
    whole.run();
  } else {
    Job(args, terms, true, false).run();
    if (of_keys) Job(args, terms, false, true).run();
  }
  if (args.d_slopes != nullptr || args.d_sink != nullptr) whole.write_totals();
}

}  // namespace fusednn::cpu::FUSEDNN_ISA
