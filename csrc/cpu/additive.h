// Scores of additive attention, s[b, m, k] = sum over h of w[h] tanh(q[b, m, h] + k[b, k, h]), and their gradients. A
// task takes one row: tanh is computed where it is used, and no tensor [B, M, K, H] exists.
// Included by isa/all.h after scan.h.

namespace fusednn::cpu::FUSEDNN_ISA {

// Calls job.row(i) for the rows 0 to count - 1, shared among threads.
template <class Job>
void each_row(const Job& job, long count, int threads) {
  struct Call {
    const Job* job;
    long count;
  } call{&job, count};
  run_team(
      count < threads ? static_cast<int>(count) : threads,
      [](void* context, int thread, int all) {
        const Call& c = *static_cast<Call*>(context);
        for (long i = c.count * thread / all; i < c.count * (thread + 1) / all; ++i) c.job->row(i);
      },
      &call);
}

template <class T>
struct AdditiveForwardJob {
  using A = AccOf<T>;
  using V = Vec<A>;

  const AdditiveForward& a;

  // One query against all keys.
  void row(long i) const {
    const AdditiveShape& s = a.shape;
    const T* q = static_cast<const T*>(a.query) + i * s.hidden;
    const T* keys = static_cast<const T*>(a.key) + i / s.queries * s.keys * s.hidden;
    A* scores = static_cast<A*>(a.scores) + i * s.keys;
    for (long k = 0; k < s.keys; ++k) {
      const T *key = keys + k * s.hidden, *w = static_cast<const T*>(a.weight);
      V sum{};
      each_vector<A>(0, s.hidden, [&](auto part, long u) {
        sum += part.load(w + u) * cells::tanh(part.load(q + u) + part.load(key + u));
      });
      A score = 0;
      for (int lane = 0; lane < Lanes<A>::kCount; ++lane) score += sum[lane];
      scores[k] = score;
    }
  }
};

// Gradients of one row of queries (kOfQuery) or of keys; those of w as one partial sum a query.
template <class T, bool kOfQuery>
struct AdditiveBackwardJob {
  using A = AccOf<T>;
  using V = Vec<A>;

  const AdditiveBackward& a;
  A* partial;  // [B * M, H]

  void row(long i) const {
    for (long u = 0; u < a.shape.hidden; u += kScanUnits) {
      const long end = u + kScanUnits;
      units(i, u, end < a.shape.hidden ? end : a.shape.hidden);
    }
  }

  void units(long i, long begin, long end) const {
    const AdditiveShape& s = a.shape;
    const long rows = kOfQuery ? s.queries : s.keys, others = kOfQuery ? s.keys : s.queries, b = i / rows;
    const T* mine = static_cast<const T*>(kOfQuery ? a.query : a.key) + i * s.hidden;
    const T* across = static_cast<const T*>(kOfQuery ? a.key : a.query) + b * others * s.hidden;
    const T* w = static_cast<const T*>(a.weight);
    const A* grad = static_cast<const A*>(a.grad) + b * s.queries * s.keys;
    A d[kScanUnits] = {}, d_weight[kScanUnits] = {};
    for (long o = 0; o < others; ++o) {
      const A g = kOfQuery ? grad[i % rows * s.keys + o] : grad[o * s.keys + i % rows];
      each_vector<A>(begin, end, [&](auto part, long u) {
        const V t = cells::tanh(part.load(mine + u) + part.load(across + o * s.hidden + u));
        A* at = d + (u - begin);
        store(at, load(at) + g * part.load(w + u) * (1 - t * t));
        if constexpr (kOfQuery) store(d_weight + (u - begin), load(d_weight + (u - begin)) + g * t);
      });
    }
    T* out = static_cast<T*>(kOfQuery ? a.d_query : a.d_key) + i * s.hidden;
    each_vector<A>(begin, end, [&](auto part, long u) {
      part.store(out + u, load(d + (u - begin)));
      if constexpr (kOfQuery) part.store(partial + i * s.hidden + u, load(d_weight + (u - begin)));
    });
  }
};

template <class T>
void additive_forward_of(const AdditiveForward& args) {
  each_row(AdditiveForwardJob<T>{args}, args.shape.batch * args.shape.queries, args.shape.threads);
}

template <class T>
void additive_backward_of(const AdditiveBackward& args) {
  using A = AccOf<T>;
  const AdditiveShape& s = args.shape;
  const long queries = s.batch * s.queries;
  Workspace space;
  space.take(sizeof(A) * static_cast<size_t>(queries * s.hidden));
  space.allocate();
  A* partial = static_cast<A*>(space.take(0));
  each_row(AdditiveBackwardJob<T, true>{args, partial}, queries, s.threads);
  each_row(AdditiveBackwardJob<T, false>{args, partial}, s.batch * s.keys, s.threads);
  each_vector<A>(0, s.hidden, [&](auto part, long u) {
    Vec<A> sum{};
    for (long i = 0; i < queries; ++i) sum += part.load(partial + i * s.hidden + u);
    part.store(static_cast<T*>(args.d_weight) + u, sum);
  });
}

}  // namespace fusednn::cpu::FUSEDNN_ISA
