#include "cpu/plan.h"

namespace fusednn::cpu {
namespace {

// Rates of one core, rounded from measurements on a server core with 1 MB of L2 (docs/kernels/recurrent_cpu.md). Only
// their ratios matter: they decide where one split overtakes the other.
constexpr double kFlopsPerUs = 150e3;
constexpr double kFastBytes = 700e3;      // weights that stay in L2 beside h and the gates
constexpr double kFastBytesPerUs = 75e3;  // for one row, its cells included
constexpr double kExposed = 0.15;         // of arithmetic or traffic, whichever is less: what the other does not hide
constexpr double kSentBytesPerUs = 10e3;  // from core to core
constexpr double kBarrierUs = 0.2, kBarrierPerThreadUs = 0.05;

double divide_up(long a, long b) {
  return static_cast<double>((a + b - 1) / b);
}

double step_us(const StepCost& c, Split s, double far) {
  const double blocks = divide_up(c.blocks, s.unit_parts);
  const double rows = divide_up(c.rows, s.row_parts);
  const double compute = rows * blocks * c.flops / kFlopsPerUs;
  const double bytes = blocks * c.weight_bytes;
  const double fast = bytes < kFastBytes ? bytes : kFastBytes;
  const double memory = fast / kFastBytesPerUs + (bytes - fast) / far;
  const double both = compute > memory ? compute + kExposed * memory : memory + kExposed * compute;
  if (s.unit_parts == 1) return both;
  const double sent = rows * (static_cast<double>(c.blocks) - blocks) * c.sent_bytes;
  return both + kBarrierUs + kBarrierPerThreadUs * s.unit_parts + sent / kSentBytesPerUs;
}

}  // namespace

double far_bytes_per_us() {
#if defined(__x86_64__)
  return __builtin_cpu_is("amd") ? 90e3 : 30e3;
#else
  return 30e3;
#endif
}

Split choose_split(const StepCost& cost, int threads, double far) {
  Split best{1, 1};
  for (int rows = 1; rows <= threads && (rows == 1 || rows <= cost.rows); ++rows) {
    for (int units = 1; rows * units <= threads && (units == 1 || units <= cost.blocks); ++units) {
      if (step_us(cost, {rows, units}, far) < step_us(cost, best, far)) best = {rows, units};
    }
  }
  return best;
}

int useful_threads(const StepCost& cost, int tracks, int threads) {
  if (tracks >= threads) return threads;
  return tracks * choose_split(cost, threads / tracks, far_bytes_per_us()).threads();
}

Share make_share(const StepCost& cost, int tracks, int thread, int threads) {
  if (tracks > threads) {  // each thread walks through its own, and never waits
    const Range mine = share_of(tracks, thread, threads);
    return {static_cast<int>(mine.begin), static_cast<int>(mine.end), 0, 0, {1, 1}};
  }
  const int per_team = threads / tracks;
  const Split split = choose_split(cost, per_team, far_bytes_per_us());
  const int team = thread / per_team, member = thread % per_team;
  if (team >= tracks || member >= split.threads()) return {0, 0, 0, 0, split};
  return {team, team + 1, member / split.unit_parts, member % split.unit_parts, split};
}

}  // namespace fusednn::cpu
