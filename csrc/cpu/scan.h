// Scans: rows of the batch and chunks of units are independent, so each thread walks through time alone.
// Included by isa/all.h after vector_math.h.

namespace fusednn::cpu::FUSEDNN_ISA {

// Calls visit(block, u) for each vector of the units from begin to end.
template <class A, class Visit>
FUSEDNN_FN void each_vector(long begin, long end, Visit visit) {
  constexpr long kLanes = Lanes<A>::kCount;
  long u = begin;
  for (; u + kLanes <= end; u += kLanes) visit(Block<true>{static_cast<int>(kLanes)}, u);
  if (u < end) visit(Block<false>{static_cast<int>(end - u)}, u);
}

constexpr long kScanUnits = 128;  // of a row that one task takes through time, so that its h stays in the first cache

template <class Cell, class T>
struct ScanForwardJob {
  using A = AccOf<T>;
  using V = Vec<A>;
  static constexpr int G = Cell::G;

  const ScanForward& a;

  void task(long b, long begin, long end) const {
    const ScanShape& s = a.shape;
    A h[kScanUnits];
    const T* start = static_cast<const T*>(a.h0) + b * s.hidden;
    each_vector<A>(begin, end, [&](auto part, long u) { store(h + (u - begin), part.load(start + u)); });
    for (long t = 0; t < s.steps; ++t) {
      const long row = t * s.batch + b;
      const T* gates = static_cast<const T*>(a.gates) + row * G * s.hidden;
      T* y = static_cast<T*>(a.y) + row * s.hidden;
      each_vector<A>(begin, end, [&](auto part, long u) {
        V x[G];
        for (int g = 0; g < G; ++g) x[g] = part.load(gates + g * s.hidden + u);
        const V next = Cell::forward(x, load(h + (u - begin)));
        store(h + (u - begin), next);
        part.store(y + u, next);
      });
    }
  }
};

template <class Cell, class T>
struct ScanBackwardJob {
  using A = AccOf<T>;
  using V = Vec<A>;
  static constexpr int G = Cell::G;

  const ScanBackward& a;

  void task(long b, long begin, long end) const {
    const ScanShape& s = a.shape;
    A dh[kScanUnits] = {};
    for (long t = s.steps - 1; t >= 0; --t) {
      const long row = t * s.batch + b;
      const T* gates = static_cast<const T*>(a.gates) + row * G * s.hidden;
      const T* grad = static_cast<const T*>(a.grad_y) + row * s.hidden;
      const T* before =
          t == 0 ? static_cast<const T*>(a.h0) + b * s.hidden : static_cast<const T*>(a.y) + (row - s.batch) * s.hidden;
      T* d_gates = static_cast<T*>(a.d_gates) + row * G * s.hidden;
      each_vector<A>(begin, end, [&](auto part, long u) {
        V x[G], dx[G];
        for (int g = 0; g < G; ++g) x[g] = part.load(gates + g * s.hidden + u);
        const V reaches = load(dh + (u - begin)) + part.load(grad + u);
        store(dh + (u - begin), Cell::backward(x, part.load(before + u), reaches, dx));
        for (int g = 0; g < G; ++g) part.store(d_gates + g * s.hidden + u, dx[g]);
      });
    }
    T* d_h0 = static_cast<T*>(a.d_h0) + b * s.hidden;
    each_vector<A>(begin, end, [&](auto part, long u) { part.store(d_h0 + u, load(dh + (u - begin))); });
  }
};

template <class Job>
void run_scan_job(const Job& job) {
  const ScanShape& s = job.a.shape;
  struct Call {
    const Job* job;
    long chunks, tasks;
  } call{&job, (s.hidden + kScanUnits - 1) / kScanUnits, 0};
  call.tasks = call.chunks * s.batch;
  run_team(
      call.tasks < s.threads ? static_cast<int>(call.tasks) : s.threads,
      [](void* context, int thread, int threads) {
        const Call& c = *static_cast<Call*>(context);
        const ScanShape& shape = c.job->a.shape;
        for (long i = c.tasks * thread / threads; i < c.tasks * (thread + 1) / threads; ++i) {
          const long begin = i % c.chunks * kScanUnits, end = begin + kScanUnits;
          c.job->task(i / c.chunks, begin, end < shape.hidden ? end : shape.hidden);
        }
      },
      &call);
}

template <template <class, class> class Job, class T, class Args>
void run_scan(const Args& args) {
  if (args.shape.batch == 0 || args.shape.hidden == 0) return;
#define FUSEDNN_RUN(C) \
  if (__builtin_strcmp(args.shape.cell, cells::C::kName) == 0) return run_scan_job(Job<cells::C, T>{args});
  FUSEDNN_SCAN_CELLS(FUSEDNN_RUN)
#undef FUSEDNN_RUN
}

}  // namespace fusednn::cpu::FUSEDNN_ISA
