// The division of work among threads.
#include <vector>

#include "cpu/plan.h"
#include "tests/check.h"

namespace {

using namespace fusednn::cpu;

constexpr double kSpread = 30e3, kGrouped = 90e3;  // as far_bytes_per_us()

StepCost cost_of(long rows, long blocks) {
  return {rows, blocks, 2. * 16 * 4 * 16. * static_cast<double>(blocks), 4. * 4 * 16 * 16 * static_cast<double>(blocks),
          4. * 16};
}

}  // namespace

TEST(every_row_and_block_of_each_track_has_exactly_one_thread) {
  for (int threads = 1; threads <= 9; ++threads) {
    for (int tracks = 1; tracks <= 5; ++tracks) {
      for (long rows : {0L, 1L, 3L, 40L}) {
        for (long blocks : {1L, 2L, 5L, 64L}) {
          std::vector<int> seen(static_cast<size_t>(tracks * rows * blocks));
          for (int i = 0; i < threads; ++i) {
            const Share s = make_share(cost_of(rows, blocks), tracks, i, threads);
            const Range mine = share_of(rows, s.row_part, s.split.row_parts);
            const Range units = share_of(blocks, s.unit_part, s.split.unit_parts);
            for (long d = s.first_track; d < s.last_track; ++d) {
              for (long b = mine.begin; b < mine.end; ++b) {
                for (long u = units.begin; u < units.end; ++u) ++seen[static_cast<size_t>((d * rows + b) * blocks + u)];
              }
            }
          }
          for (int n : seen) CHECK(n == 1, threads << " threads, " << tracks << " tracks, " << rows << " x " << blocks);
        }
      }
    }
  }
}

TEST(no_thread_of_a_team_is_idle) {
  for (int threads = 1; threads <= 9; ++threads) {
    for (int tracks = 1; tracks <= 5; ++tracks) {
      for (long rows : {1L, 3L, 40L}) {
        for (long blocks : {1L, 2L, 5L, 64L}) {
          const int team = useful_threads(cost_of(rows, blocks), tracks, threads);
          CHECK(team >= 1 && team <= threads, team << " of " << threads);
          for (int i = 0; i < team; ++i) {
            CHECK(!make_share(cost_of(rows, blocks), tracks, i, team).idle(),
                  i << " of " << team << ", " << tracks << " tracks, " << rows << " x " << blocks);
          }
        }
      }
    }
  }
  CHECK(useful_threads(cost_of(1, 1), 1, 8) == 1, "one block of one row");
}

TEST(small_weights_split_the_batch_and_large_ones_the_units) {
  CHECK(choose_split(cost_of(8, 4), 2, kSpread).row_parts == 2, "H = 64");
  CHECK(choose_split(cost_of(8, 32), 2, kSpread).unit_parts == 2, "H = 512");
  CHECK(choose_split(cost_of(1, 32), 2, kGrouped).unit_parts == 2, "one row");
}

TEST(where_the_next_cache_is_fast_backward_splits_the_batch) {
  StepCost cost = cost_of(8, 16);
  cost.sent_bytes *= 4;  // of all gates
  CHECK(choose_split(cost, 2, kSpread).unit_parts == 2, "slow");
  CHECK(choose_split(cost, 2, kGrouped).row_parts == 2, "fast");
}

TEST(threads_that_send_each_other_much_split_the_batch) {
  StepCost cost = cost_of(8, 16);
  CHECK(choose_split(cost, 2, kSpread).unit_parts == 2, "little is sent");
  cost.sent_bytes *= 100;
  CHECK(choose_split(cost, 2, kSpread).row_parts == 2, "much is sent");
}

TEST(one_row_splits_its_units_where_that_saves_more_than_a_meeting_costs) {
  const auto one_gate = [](long blocks) {
    const double weights = 16. * 16 * static_cast<double>(blocks);
    return StepCost{1, blocks, 2 * weights, 4 * weights, 4. * 16};
  };
  CHECK(choose_split(one_gate(4), 2, kSpread).threads() == 1, "H = 64");
  CHECK(choose_split(one_gate(8), 2, kSpread).unit_parts == 2, "H = 128");
}
