// The meetings of a team: nobody leaves one before all have come, and what was written before it is seen behind it.
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "cpu/team.h"
#include "tests/check.h"

namespace {

using namespace fusednn::cpu;

// Each thread writes the number of the meeting into its place of one of two rows, meets, and looks at all places of
// that row; the next meeting keeps the row from being written again before all have looked.
struct Episodes {
  Episodes(int threads, long meetings) : meetings(meetings) {
    for (auto& written : places) written.resize(static_cast<size_t>(threads));
  }

  void run(int thread, int threads) {
    for (long m = 1; m <= meetings; ++m) {
      std::vector<long>& written = places[m % 2];
      written[static_cast<size_t>(thread)] = m;
      if (late != nullptr) late(m, thread);
      barrier.wait(threads);
      for (int i = 0; i < threads; ++i) wrong += written[static_cast<size_t>(i)] != m;
    }
  }

  Barrier barrier;
  std::vector<long> places[2];
  long meetings;
  void (*late)(long meeting, int thread) = nullptr;
  std::atomic<long> wrong = 0;
};

// On threads of its own, which are as many as asked for on any machine.
void run_threads(Episodes& episodes, int threads) {
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back([&episodes, i, threads] { episodes.run(i, threads); });
  episodes.run(0, threads);
  for (std::thread& other : others) other.join();
}

// The spins that are left where a team has more threads than the machine processors.
void allow_brief_spins() {
  const int many = 4 * static_cast<int>(std::thread::hardware_concurrency()) + 1;
  run_team(many, [](void*, int, int) {}, nullptr);
}

}  // namespace

TEST(a_barrier_keeps_a_team_together_for_many_meetings) {
  allow_brief_spins();
  for (int threads : {2, 3, 5, 16}) {
    Episodes episodes(threads, threads == 2 ? 100000 : 5000);
    run_threads(episodes, threads);
    CHECK(episodes.wrong == 0, episodes.wrong << " wrong places with " << threads << " threads");
  }
}

TEST(who_slept_wakes_with_long_and_with_brief_spins) {
  for (bool brief : {false, true}) {
    if (brief) {
      allow_brief_spins();
    } else {
      run_team(2, [](void*, int, int) {}, nullptr);
    }
    for (int threads : {2, 3, 5}) {
      Episodes episodes(threads, 50);
      episodes.late = [](long meeting, int thread) {  // each in turn, by more than anybody spins
        if (meeting % 5 == thread) std::this_thread::sleep_for(std::chrono::milliseconds(3));
      };
      run_threads(episodes, threads);
      CHECK(episodes.wrong == 0, episodes.wrong << " wrong places with " << threads << " threads");
    }
  }
}
