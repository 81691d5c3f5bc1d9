// What the threads of a recurrence cost at least on this CPU: starting a team, and one meeting of it.
//   cpu_floors [threads]   prints one JSON object a line: {"floor": name, "us": median, "low": q25, "high": q75, ...}
// The team and the barrier are those of csrc/cpu.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "cpu/team.h"

namespace {

using fusednn::cpu::Barrier;
using fusednn::cpu::run_team;

constexpr int kUnits = 100;        // teams or meetings between two looks at the clock
constexpr int kRepetitions = 101;  // fewer on a machine whose cores others use, but three at least
constexpr double kSeconds = 0.5;   // that each floor may take

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void print(const char* name, int threads, std::vector<double> us) {
  std::sort(us.begin(), us.end());
  std::printf("{\"floor\": \"%s\", \"us\": %.4f, \"low\": %.4f, \"high\": %.4f, \"threads\": %d}\n", name,
              us[us.size() / 2], us[us.size() / 4], us[us.size() * 3 / 4], threads);
}

bool more(const std::vector<double>& us, double begun) {
  return us.size() < 3 || (us.size() < kRepetitions && seconds() - begun < kSeconds);
}

void nothing(void*, int, int) {}

void parallel_regions(int threads) {
  run_team(threads, nothing, nullptr);  // starts the pool
  std::vector<double> us;
  for (const double begun = seconds(); more(us, begun);) {
    const double start = seconds();
    for (int i = 0; i < kUnits; ++i) run_team(threads, nothing, nullptr);
    us.push_back((seconds() - start) * 1e6 / kUnits);
  }
  print("parallel_region", threads, us);
}

struct Meetings {
  Barrier barrier;
  double us = 0;
};

void meet(void* context, int thread, int threads) {
  Meetings& m = *static_cast<Meetings*>(context);
  m.barrier.wait(threads);
  const double start = seconds();
  for (int i = 0; i < kUnits; ++i) m.barrier.wait(threads);
  if (thread == 0) m.us = (seconds() - start) * 1e6 / kUnits;
}

void barriers(int threads) {
  std::vector<double> us;
  for (const double begun = seconds(); more(us, begun);) {
    Meetings meetings;
    run_team(threads, meet, &meetings);
    us.push_back(meetings.us);
  }
  print("thread_barrier", threads, us);
}

}  // namespace

int main(int argc, char** argv) {
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  const int threads = std::max(1, argc > 1 ? std::atoi(argv[1]) : cores);
  parallel_regions(threads);
  barriers(threads);
}
