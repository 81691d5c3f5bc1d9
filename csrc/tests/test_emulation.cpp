// What docs/kernels/emulation.md promises of the machine: its schedule, its hostility and its deaths. A kernel with a
// planted bug must fail under one of 20 seeds, and the same kernel without the bug must pass under all.
#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "cuda/launch.h"
#include "cuda/primitives/cluster.h"
#include "cuda/primitives/dependency.h"
#include "cuda/primitives/grid.h"
#include "cuda/primitives/memory.h"
#include "cuda/primitives/mma.h"
#include "cuda/primitives/warp.h"
#include "tests/check.h"

namespace {

using namespace fusednn;
using namespace fusednn::cuda;

constexpr uint64_t kSeeds = 20;

std::string text(const char* message) {
  return message == nullptr ? "" : message;
}

template <class... Parameters, class... Arguments>
std::string start(void (*kernel)(Parameters...), const LaunchShape& shape, Arguments... arguments) {
  return text(launch_as("planted", kernel, shape, nullptr, arguments...));
}

// Empty, or what the launch died of.
template <class... Parameters, class... Arguments>
std::string run(void (*kernel)(Parameters...), const LaunchShape& shape, Arguments... arguments) {
  const std::string refused = start(kernel, shape, arguments...);
  const std::string died = text(settle());
  return refused.empty() ? died : refused;
}

LaunchShape blocks(unsigned count, unsigned threads, size_t shared_bytes = 0) {
  LaunchShape shape;
  shape.grid[0] = count, shape.threads = threads, shape.shared_bytes = shared_bytes;
  return shape;
}

LaunchShape cluster(unsigned count, unsigned threads, size_t shared_bytes) {
  LaunchShape shape = blocks(count, threads, shared_bytes);
  shape.cluster = count;
  return shape;
}

LaunchShape cooperative(unsigned count, unsigned threads) {
  LaunchShape shape = blocks(count, threads);
  shape.cooperative = true;
  return shape;
}

LaunchShape programmatic(unsigned count, unsigned threads) {
  LaunchShape shape = blocks(count, threads);
  shape.programmatic = true;
  return shape;
}

template <class Body>
void over_seeds(Body body) {
  const uint64_t before = emulation::seed();
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    emulation::set_seed(seed);
    body();
  }
  emulation::set_seed(before);
}

// attempt() returns whether the kernel did what it should.
template <class Attempt>
uint64_t failures_over_seeds(Attempt attempt) {
  uint64_t count = 0;
  over_seeds([&] { count += attempt() ? 0 : 1; });
  return count;
}

#define CHECK_DETECTED(broken, whole)                                                        \
  do {                                                                                       \
    const uint64_t found = failures_over_seeds(broken), wrong = failures_over_seeds(whole);  \
    CHECK(found > 0, "the bug stays hidden under all seeds");                                \
    CHECK(wrong == 0, "the kernel without the bug fails under " << wrong << " of 20 seeds"); \
  } while (false)

#define CHECK_DIES(message, part) \
  CHECK((message).find(part) != std::string::npos, "\"" << (message) << "\" lacks \"" << (part) << "\"")

// ------- the schedule

__global__ void keep_a_log(std::vector<unsigned>* log) {
  for (int i = 0; i < 3; ++i) {
    log->push_back(threadIdx.x);
    warp_sync();
  }
}

struct Schedule {
  uint64_t switches;
  std::vector<unsigned> order;
  bool operator==(const Schedule&) const = default;
};

Schedule schedule_of(uint64_t seed) {
  const uint64_t seed_before = emulation::seed(), before = emulation::counts().switches;
  Schedule schedule;
  emulation::set_seed(seed);
  const std::string died = run(keep_a_log, blocks(2, 128), &schedule.order);
  CHECK(died.empty(), died);
  emulation::set_seed(seed_before);
  schedule.switches = emulation::counts().switches - before;
  return schedule;
}

TEST(the_same_seed_replays_the_same_schedule) {
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    CHECK(schedule_of(seed) == schedule_of(seed), "seed " << seed << " gave two schedules");
  }
}

TEST(other_seeds_give_other_schedules) {
  std::set<std::vector<unsigned>> orders;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) orders.insert(schedule_of(seed).order);
  CHECK(orders.size() == kSeeds, "20 seeds gave " << orders.size() << " schedules");
}

TEST(switches_and_launches_are_counted) {
  const emulation::Counts before = emulation::counts();
  std::vector<unsigned> log;
  CHECK(run(keep_a_log, blocks(2, 64), &log).empty(), "a kernel without a fault died");
  const emulation::Counts after = emulation::counts();
  CHECK(after.launches == before.launches + 1, after.launches - before.launches << " launches");
  // Of the 32 lanes that meet, the last goes on without a switch.
  const uint64_t least = 4 * (32 + 3 * 31);
  CHECK(after.switches - before.switches == least, after.switches - before.switches << " switches, not " << least);
}

TEST(lanes_run_in_both_directions_from_any_lane) {
  std::set<unsigned> first;
  bool up = false, down = false;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    const std::vector<unsigned> order = schedule_of(seed).order;
    const unsigned step = (order[1] - order[0] + 32) % 32;
    CHECK(step == 1 || step == 31, "lane " << order[1] << " after lane " << order[0]);
    (step == 1 ? up : down) = true;
    first.insert(order[0] % 32);
  }
  CHECK(up && down, "lanes run in one direction only");
  CHECK(first.size() > kSeeds / 4, "only " << first.size() << " lanes are ever the first");
}

// Every warp takes many turns; the log has one entry a turn.
__global__ void take_turns(std::vector<unsigned>* log) {
  for (int i = 0; i < 3000; ++i) {
    if (lane_of_warp() == 0) log->push_back(warp_of_block());
    warp_sync();
  }
}

TEST(a_warp_may_be_passed_over_for_thousands_of_turns) {
  uint64_t stalls = 0;
  over_seeds([&] {
    std::vector<unsigned> log;
    const std::string died = run(take_turns, blocks(1, 128), &log);
    CHECK(died.empty(), died);
    for (unsigned warp = 0; warp < 4; ++warp) {
      const auto first = std::find(log.begin(), log.end(), warp) - log.begin();
      if (first >= 1900) ++stalls;
    }
  });
  CHECK(stalls > 0 && stalls < kSeeds, stalls << " of 20 runs had such a warp");
}

__global__ void read_untouched(float* out, double* out64) {
  out[threadIdx.x] = shared_memory<float>()[threadIdx.x];
  out64[threadIdx.x] = shared_memory<double>()[threadIdx.x];
  warp_sync();
  shared_memory<float>()[threadIdx.x] = 0;
}

TEST(shared_memory_is_nan_at_the_start_of_every_block) {
  over_seeds([] {
    std::vector<float> out(32);
    std::vector<double> out64(32);
    for (int i = 0; i < 2; ++i) {
      CHECK(run(read_untouched, blocks(2, 32, 256), out.data(), out64.data()).empty(), "it died");
      CHECK(std::all_of(out.begin(), out.end(), [](float x) { return std::isnan(x); }), "a float is a number");
      CHECK(std::all_of(out64.begin(), out64.end(), [](double x) { return std::isnan(x); }), "a double is a number");
    }
  });
}

__global__ void note_state(const u32* ended, u32* seen, bool wait) {
  if (wait) dependency_wait();
  if (threadIdx.x == 0) seen[blockIdx.x] = *ended;
  if (!wait) dependency_wait();
}

__global__ void set_ended(u32* ended) {
  *ended = 1;
}

TEST(sixteen_blocks_of_a_programmatic_launch_begin_before_the_launch_in_front) {
  over_seeds([] {
    for (const bool wait : {false, true}) {
      u32 ended = 0;
      std::vector<u32> seen(20, 7);
      start(set_ended, blocks(1, 32), &ended);
      CHECK(run(note_state, programmatic(20, 32), &ended, seen.data(), wait).empty(), "it died");
      for (size_t b = 0; b < 20; ++b) {
        CHECK(seen[b] == (wait || b >= 16 ? 1u : 0u), "block " << b << " saw " << seen[b]);
      }
    }
  });
}

TEST(a_programmatic_launch_that_waits_for_nothing_dies) {
  over_seeds([] {
    u32 first = 0, second = 0;
    start(set_ended, blocks(1, 32), &first);
    const std::string died = run(set_ended, programmatic(2, 32), &second);
    CHECK(died.find("without dependency_wait") != std::string::npos, died);
  });
}

TEST(a_plain_launch_begins_after_the_launch_in_front) {
  over_seeds([] {
    u32 ended = 0;
    std::vector<u32> seen(20, 7);
    start(set_ended, blocks(1, 32), &ended);
    CHECK(run(note_state, blocks(20, 32), &ended, seen.data(), false).empty(), "it died");
    CHECK(std::count(seen.begin(), seen.end(), 1u) == 20, "a block began early");
  });
}

// ------- planted bugs

// All planted kernels write to out; attempt<kernel>() compares with what they should write.
template <class... Parameters, class... Arguments>
bool gives(const std::vector<u32>& expected, void (*kernel)(u32*, Parameters...), const LaunchShape& shape,
           Arguments... arguments) {
  std::vector<u32> out(expected.size());
  return run(kernel, shape, out.data(), arguments...).empty() && out == expected;
}

std::vector<u32> descending(u32 count, u32 add = 0) {
  std::vector<u32> values(count);
  for (u32 i = 0; i < count; ++i) values[i] = count - 1 - i + add;
  return values;
}

template <bool kSync>
__global__ void mirror_block(u32* out) {
  u32* shared = shared_memory<u32>();
  shared[threadIdx.x] = threadIdx.x;
  if (kSync) block_sync();
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

TEST(a_missing_block_sync_is_found) {
  CHECK_DETECTED([] { return gives(descending(128), mirror_block<false>, blocks(1, 128, 512)); },
                 [] { return gives(descending(128), mirror_block<true>, blocks(1, 128, 512)); });
}

template <bool kSync>
__global__ void mirror_warp(u32* out) {
  u32* shared = shared_memory<u32>();
  shared[threadIdx.x] = threadIdx.x;
  if (kSync) warp_sync();
  out[threadIdx.x] = shared[31 - threadIdx.x];
}

TEST(a_missing_warp_sync_is_found) {
  CHECK_DETECTED([] { return gives(descending(32), mirror_warp<false>, blocks(1, 32, 128)); },
                 [] { return gives(descending(32), mirror_warp<true>, blocks(1, 32, 128)); });
}

// The second warp reads what the first wrote, behind a named barrier.
template <bool kArrive>
__global__ void produce(u32* out) {
  u32* shared = shared_memory<u32>();
  if (threadIdx.x < 32) {
    if (!kArrive) named_arrive(1, 64);
    shared[threadIdx.x] = threadIdx.x;
    if (kArrive) named_arrive(1, 64);
  } else {
    named_sync(1, 64);
    out[threadIdx.x - 32] = shared[63 - threadIdx.x];
  }
}

TEST(an_arrival_at_a_named_barrier_before_the_data_is_found) {
  CHECK_DETECTED([] { return gives(descending(32), produce<false>, blocks(1, 64, 128)); },
                 [] { return gives(descending(32), produce<true>, blocks(1, 64, 128)); });
}

// kLeft of two groups may be under way when both are read.
template <int kLeft>
__global__ void copy_two_groups(u32* out, const u32* in) {
  u32* shared = shared_memory<u32>();
  const unsigned i = threadIdx.x;
  copy_async<4>(shared + i, in + i);
  copy_commit();
  copy_async<4>(shared + 32 + i, in + 32 + i);
  copy_commit();
  copy_wait<kLeft>();
  out[i] = shared[i];
  out[32 + i] = shared[32 + i];
}

TEST(a_missing_copy_wait_is_found) {
  const std::vector<u32> in = descending(64);
  const auto whole = [&] { return gives(in, copy_two_groups<0>, blocks(1, 32, 256), in.data()); };
  CHECK_DETECTED([&] { return gives(in, copy_two_groups<2>, blocks(1, 32, 256), in.data()); }, whole);
  CHECK_DETECTED([&] { return gives(in, copy_two_groups<1>, blocks(1, 32, 256), in.data()); }, whole);
}

// The source changes after the commit, before the wait: a copy may read it early or late.
__global__ void change_the_source(u32* out, u32* in) {
  u32* shared = shared_memory<u32>();
  copy_async<4>(shared + threadIdx.x, in + threadIdx.x);
  copy_commit();
  in[threadIdx.x] = 1;
  copy_wait<0>();
  out[threadIdx.x] = shared[threadIdx.x];
}

TEST(some_copies_land_at_their_commit_and_some_at_their_wait) {
  over_seeds([] {
    std::vector<u32> in(256), out(256);
    CHECK(run(change_the_source, blocks(1, 256, 1024), out.data(), in.data()).empty(), "it died");
    const auto late = std::count(out.begin(), out.end(), 1u);
    CHECK(late > 64 && late < 192, late << " of 256 copies landed late");
  });
}

// Of 16 bytes that a relaxed store brings, the first word tells nothing of the others.
template <bool kAll>
__global__ void hand_over_vectors(u32* out, Bytes16* data) {
  Bytes16* mine = data + threadIdx.x;
  if (blockIdx.x == 0) return store_relaxed(mine, Bytes16{{1, 2, 3, 4}});
  const auto here = [](const Bytes16& v) {
    return v.word[0] != 0 && (!kAll || (v.word[1] != 0 && v.word[2] != 0 && v.word[3] != 0));
  };
  Bytes16 got;
  while (!here(got = load_relaxed(mine))) spin("16 bytes");
  out[threadIdx.x] = got.word[0] + got.word[1] + got.word[2] + got.word[3];
}

template <bool kAll>
bool hands_over_vectors() {
  std::vector<Bytes16> data(32);
  return gives(std::vector<u32>(32, 10), hand_over_vectors<kAll>, cooperative(2, 32), data.data());
}

TEST(a_look_at_one_word_of_a_vector_is_found) {
  CHECK_DETECTED(hands_over_vectors<false>, hands_over_vectors<true>);
}

// A flag that is polled without acquire says that the data behind it came, not that it is seen.
template <bool kFence>
__global__ void hand_over_late(u32* out, u32* data, u32* flag) {
  if (blockIdx.x == 0) {
    store_relaxed(data + threadIdx.x, threadIdx.x);
    fence_gpu();
    block_sync();
    if (threadIdx.x == 0) store_release(flag, 1);
    return;
  }
  while (load_relaxed(flag) == 0) spin("the flag");
  if (kFence) fence_gpu();
  out[threadIdx.x] = load_relaxed(data + blockDim.x - 1 - threadIdx.x);
}

// Data and a flag from one block to another.
bool hands_over(void (*kernel)(u32*, u32*, u32*)) {
  std::vector<u32> data(64);
  u32 flag = 0;
  return gives(descending(64), kernel, cooperative(2, 64), data.data(), &flag);
}

TEST(a_missing_acquire_is_found) {
  CHECK_DETECTED([] { return hands_over(hand_over_late<false>); }, [] { return hands_over(hand_over_late<true>); });
}

enum class Flag { kRelaxed, kRelease, kFence, kAdd };

// Block 0 stores data and then a flag; block 1 waits for the flag and reads.
template <Flag kFlag>
__global__ void hand_over(u32* out, u32* data, u32* flag) {
  const unsigned i = threadIdx.x;
  if (blockIdx.x == 0) {
    store_relaxed(data + i, i);
    block_sync();
    if (i > 0) return;
    if (kFlag == Flag::kRelease) store_release(flag, 1);
    if (kFlag == Flag::kFence) fence_gpu();
    if (kFlag == Flag::kFence || kFlag == Flag::kRelaxed) store_relaxed(flag, 1);
    if (kFlag == Flag::kAdd) add_acq_rel(flag, 1);
  } else {
    if (i == 0) {
      while (load_acquire(flag) == 0) spin("the flag");
    }
    block_sync();
    out[i] = load_relaxed(data + blockDim.x - 1 - i);
  }
}

template <Flag kFlag>
bool hands_over() {
  return hands_over(hand_over<kFlag>);
}

TEST(a_missing_release_is_found) {
  CHECK_DETECTED(hands_over<Flag::kRelaxed>, hands_over<Flag::kRelease>);
  CHECK_DETECTED(hands_over<Flag::kRelaxed>, hands_over<Flag::kFence>);
  CHECK_DETECTED(hands_over<Flag::kRelaxed>, hands_over<Flag::kAdd>);
}

template <bool kSync>
__global__ void mirror_grid(u32* out, u32* data, u32* arrivals) {
  if (threadIdx.x == 0) store_relaxed(data + blockIdx.x, blockIdx.x);
  if (kSync) grid_sync(arrivals, 1);
  if (threadIdx.x == 0) out[blockIdx.x] = load_relaxed(data + gridDim.x - 1 - blockIdx.x);
}

template <bool kSync>
bool mirrors_grid() {
  std::vector<u32> data(8, 99);
  u32 arrivals = 0;
  return gives(descending(8), mirror_grid<kSync>, cooperative(8, 32), data.data(), &arrivals);
}

TEST(a_missing_grid_sync_is_found) {
  CHECK_DETECTED(mirrors_grid<false>, mirrors_grid<true>);
}

template <bool kWait>
__global__ void receive_bytes(u32* out) {
  u64* barrier = shared_memory<u64>();
  u32* data = shared_memory<u32>() + 2;
  if (threadIdx.x == 0) mbarrier_init(barrier, 1);
  block_sync();
  if (threadIdx.x == 0) mbarrier_expect(barrier, blockDim.x * 4);
  store_async(shared_address(data + blockDim.x - 1 - threadIdx.x), threadIdx.x, shared_address(barrier));
  while (kWait && !mbarrier_try(barrier, 0)) {
  }
  block_sync();  // all have sent
  out[threadIdx.x] = data[threadIdx.x];
}

TEST(a_missing_wait_at_an_mbarrier_is_found) {
  CHECK_DETECTED([] { return gives(descending(64), receive_bytes<false>, blocks(1, 64, 264)); },
                 [] { return gives(descending(64), receive_bytes<true>, blocks(1, 64, 264)); });
}

// Phases of parity 0, 1, 0: kFlip or the test of a phase that is long complete.
template <bool kFlip>
__global__ void receive_phases(u32* out) {
  u64* barrier = shared_memory<u64>();
  u32* data = shared_memory<u32>() + 2;
  if (threadIdx.x == 0) mbarrier_init(barrier, 1);
  block_sync();
  for (u32 p = 0; p < 3; ++p) {
    if (threadIdx.x == 0) mbarrier_expect(barrier, blockDim.x * 4);
    store_async(shared_address(data + threadIdx.x), p * 100 + threadIdx.x, shared_address(barrier));
    block_sync();
    while (!mbarrier_try(barrier, kFlip ? p % 2 : 0)) {
    }
    out[p * blockDim.x + threadIdx.x] = data[threadIdx.x];
    block_sync();
  }
}

TEST(a_wait_for_the_wrong_parity_is_found) {
  std::vector<u32> expected;
  for (u32 p = 0; p < 3; ++p) {
    for (u32 i = 0; i < 64; ++i) expected.push_back(p * 100 + i);
  }
  CHECK_DETECTED([&] { return gives(expected, receive_phases<false>, blocks(1, 64, 264)); },
                 [&] { return gives(expected, receive_phases<true>, blocks(1, 64, 264)); });
}

template <bool kSyncBefore, bool kSyncAtEnd>
__global__ void read_neighbour(u32* out) {
  u32* shared = shared_memory<u32>();
  shared[threadIdx.x] = blockIdx.x * 32 + threadIdx.x;
  if (kSyncBefore) cluster_sync();
  const unsigned other = cluster_size() - 1 - cluster_rank();
  out[blockIdx.x * 32 + threadIdx.x] = load_remote(remote_address(shared_address(shared + 31 - threadIdx.x), other));
  if (kSyncAtEnd) cluster_sync();
}

TEST(a_missing_cluster_sync_before_remote_reads_is_found) {
  CHECK_DETECTED([] { return gives(descending(128), read_neighbour<false, true>, cluster(4, 32, 128)); },
                 [] { return gives(descending(128), read_neighbour<true, true>, cluster(4, 32, 128)); });
}

TEST(a_missing_cluster_sync_before_a_block_ends_is_found) {
  CHECK_DETECTED([] { return gives(descending(128), read_neighbour<true, false>, cluster(4, 32, 128)); },
                 [] { return gives(descending(128), read_neighbour<true, true>, cluster(4, 32, 128)); });
}

// Two blocks exchange a value a thread in every round and mix it into their own. A block that has its partner's value
// sends the next one: the partner may not have read the last yet, so that two buffers are needed.
template <unsigned kBuffers>
__global__ void exchange(u32* out, u32 rounds) {
  u64* barriers = shared_memory<u64>();
  u32* data = shared_memory<u32>() + 4;
  const unsigned i = threadIdx.x, n = blockDim.x, other = 1 - cluster_rank();
  if (i < kBuffers) mbarrier_init(barriers + i, 1);
  mbarrier_init_fence();
  block_sync();
  if (i == 0) {
    for (unsigned b = 0; b < kBuffers; ++b) mbarrier_expect(barriers + b, n * 4);
  }
  cluster_sync();
  u32 mine = blockIdx.x * 1000 + i;
  for (u32 r = 0; r < rounds; ++r) {
    const unsigned buffer = r % kBuffers;
    store_async(remote_address(shared_address(data + buffer * n + i), other), mine,
                remote_address(shared_address(barriers + buffer), other));
    while (!mbarrier_try(barriers + buffer, r / kBuffers % 2)) {
    }
    mine = 3 * mine + data[buffer * n + n - 1 - i];
    block_sync();  // all have read before one sends again, and before the buffer's next phase is announced
    if (i == 0) mbarrier_expect(barriers + buffer, r + kBuffers < rounds ? n * 4 : 0);
    block_sync();
  }
  out[blockIdx.x * n + i] = mine;
  cluster_sync();
}

TEST(a_single_buffer_between_two_blocks_is_found) {
  constexpr u32 kRounds = 6, kThreads = 64;
  std::vector<u32> expected(2 * kThreads);
  for (u32 i = 0; i < 2 * kThreads; ++i) expected[i] = i / kThreads * 1000 + i % kThreads;
  for (u32 r = 0; r < kRounds; ++r) {
    const std::vector<u32> before = expected;
    for (u32 i = 0; i < 2 * kThreads; ++i) expected[i] = 3 * before[i] + before[2 * kThreads - 1 - i];
  }
  CHECK_DETECTED([&] { return gives(expected, exchange<1>, cluster(2, kThreads, 16 + 512), kRounds); },
                 [&] { return gives(expected, exchange<2>, cluster(2, kThreads, 16 + 512), kRounds); });
}

__global__ void produce_all(u32* data) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  data[i] = i;
}

template <bool kWait>
__global__ void mirror_launch(u32* out, const u32* data) {
  if (kWait) dependency_wait();
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = data[gridDim.x * blockDim.x - 1 - i];
}

template <bool kWait>
bool mirrors_launch() {
  std::vector<u32> data(128, 999);
  start(produce_all, blocks(4, 32), data.data());
  return gives(descending(128), mirror_launch<kWait>, programmatic(4, 32), data.data());
}

TEST(a_missing_dependency_wait_is_found) {
  CHECK_DETECTED(mirrors_launch<false>, mirrors_launch<true>);
}

// The launch in front still reads what the launch behind overwrites.
template <bool kWait>
__global__ void overwrite(u32* data) {
  if (kWait) dependency_wait();
  data[blockIdx.x * blockDim.x + threadIdx.x] = 999;
}

template <bool kWait>
bool overwrites() {
  std::vector<u32> data(128), out(128);
  for (u32 i = 0; i < 128; ++i) data[i] = i;
  start(mirror_launch<true>, blocks(4, 32), out.data(), data.data());
  return run(overwrite<kWait>, programmatic(4, 32), data.data()).empty() && out == descending(128);
}

TEST(a_missing_dependency_wait_before_an_overwrite_is_found) {
  CHECK_DETECTED(overwrites<false>, overwrites<true>);
}

// ------- deaths

enum class Fault {
  kDiverge,
  kEndWhileOthersWait,
  kMeetAfterOthersEnded,
  kCountsDiffer,
  kCountOfNoWarps,
  kLanesNameDifferentBarriers,
  kBarrier16,
  kBarrierLeftIncomplete,
  kBarrierWaitsForNobody,
  kTooManyArrivals,
  kNotInitialised,
  kCountZero,
  kInitElsewhere,
  kTryElsewhere,
  kDataAndBarrierApart,
  kStoreNamesNoBarrier,
  kArriveTwice,
  kWaitWithoutArrive,
  kReadAnEndedBlock,
  kStoreToAnEndedBlock,
  kStoreNamesAnUnfencedBarrier,
  kBeyondTheCluster,
  kOutside,
  kNoSharedAddress,
  kRemoteNotAligned,
  kWriteBehind,
  kCopyOutside,
  kCopyNotAligned,
  kLoadNotAligned,
  kMatrixNotAligned,
  kStoreNotAligned,
  kPollForEver,
  kWaitForALaterBlock,
  kLaunch,
};

__global__ void fault_of(Fault fault, u32* global) {
  u64* barrier = shared_memory<u64>();
  u32* data = shared_memory<u32>() + 4;
  const unsigned i = threadIdx.x, warp = warp_of_block();
  const u32 at = shared_address(barrier), data_at = shared_address(data);
  switch (fault) {
    case Fault::kDiverge:
      i % 32 == 5 ? static_cast<void>(ballot(true)) : static_cast<void>(shuffle(i, 0));
      break;
    case Fault::kEndWhileOthersWait:
      if (i % 32 == 5) {
        while (load_relaxed(global) == 0) spin("lane 6");
        return;
      }
      if (i % 32 == 6) store_release(global, 1);
      warp_sync();
      break;
    case Fault::kMeetAfterOthersEnded:
      if (i % 32 == 5) return;
      while (i % 32 == 6 && load_relaxed(global) == 0) {
        store_release(global, 1);
        spin("lane 5");
      }
      warp_sync();
      break;
    case Fault::kCountsDiffer:
      named_sync(1, warp == 0 ? 64 : 96);
      break;
    case Fault::kCountOfNoWarps:
      named_sync(1, 48);
      break;
    case Fault::kLanesNameDifferentBarriers:
      named_sync(1 + i % 2, 64);
      break;
    case Fault::kBarrier16:
      named_sync(16, 64);
      break;
    case Fault::kBarrierLeftIncomplete:
      if (warp == 0) named_arrive(3, 64);
      break;
    case Fault::kBarrierWaitsForNobody:
      if (warp == 0) named_sync(3, 64);
      break;
    case Fault::kTooManyArrivals:
      if (i > 0) return;
      mbarrier_init(barrier, 1);
      mbarrier_expect(barrier, 4);
      mbarrier_arrive(barrier);
      break;
    case Fault::kNotInitialised:
      mbarrier_arrive(barrier);
      break;
    case Fault::kCountZero:
      mbarrier_init(barrier, 0);
      break;
    case Fault::kInitElsewhere:
      emulation::mbarrier_init(remote_address(at, 1 - cluster_rank()), 1);
      break;
    case Fault::kTryElsewhere:
      emulation::mbarrier_done(remote_address(at, 1 - cluster_rank()), 0);
      break;
    case Fault::kDataAndBarrierApart:
      store_async(remote_address(data_at, 1 - cluster_rank()), 1, at);
      break;
    case Fault::kStoreNamesNoBarrier:
      store_async(data_at, 1, at);
      cluster_sync();
      break;
    case Fault::kArriveTwice:
      cluster_arrive();
      cluster_arrive();
      break;
    case Fault::kWaitWithoutArrive:
      cluster_wait();
      break;
    case Fault::kReadAnEndedBlock:
      if (cluster_rank() == 0) return;
      for (int turn = 0; turn < 10000; ++turn) warp_sync();
      load_remote(remote_address(data_at, 0));
      break;
    case Fault::kStoreToAnEndedBlock:
      if (i == 0) mbarrier_init(barrier, 1);
      mbarrier_init_fence();
      cluster_sync();
      store_async(remote_address(data_at, 1 - cluster_rank()), 1, remote_address(at, 1 - cluster_rank()));
      break;
    case Fault::kStoreNamesAnUnfencedBarrier:
      if (i == 0) mbarrier_init(barrier, 1);
      cluster_sync();
      store_async(remote_address(data_at, 1 - cluster_rank()), 1, remote_address(at, 1 - cluster_rank()));
      for (int turn = 0; turn < 10000; ++turn) warp_sync();
      break;
    case Fault::kBeyondTheCluster:
      load_remote(remote_address(data_at, 2));
      break;
    case Fault::kOutside:
      load_remote(data_at + 1024);
      break;
    case Fault::kNoSharedAddress:
      shared_address(global);
      break;
    case Fault::kRemoteNotAligned:
      store_async(data_at + 4, Bytes16{}, at);
      break;
    case Fault::kWriteBehind:
      shared_memory<unsigned char>()[1024] = 1;
      break;
    case Fault::kCopyOutside:
      copy_async<4>(data + 1024, global);
      break;
    case Fault::kCopyNotAligned:
      copy_async<16>(data, global + 1);
      break;
    case Fault::kLoadNotAligned:
      load_constant(global + 1);
      break;
    case Fault::kMatrixNotAligned: {
      u32 r[4];
      load_matrices<false>(r, data + 1);
      break;
    }
    case Fault::kStoreNotAligned:
      store_relaxed(reinterpret_cast<u32*>(reinterpret_cast<char*>(global) + 2), 1);
      break;
    case Fault::kPollForEver:
      while (load_acquire(global) == 0) spin("a flag that nobody sets");
      break;
    case Fault::kWaitForALaterBlock:
      if (blockIdx.x == 0) {
        while (load_acquire(global) == 0) spin("block 2");
      }
      if (blockIdx.x == 2) store_release(global, 1);
      break;
    case Fault::kLaunch:
      start(set_ended, blocks(1, 32), global);
      break;
  }
}

std::string death_of(Fault fault) {
  alignas(16) u32 global[8] = {};
  LaunchShape shape = cluster(2, 64, 1024);
  shape.grid[0] = 4;
  return run(fault_of, shape, fault, global);
}

struct Expected {
  Fault fault;
  const char* message;
};

void check_deaths(const std::vector<Expected>& all) {
  over_seeds([&] {
    for (const Expected& each : all) {
      const std::string died = death_of(each.fault);
      CHECK_DIES(died, each.message);
      CHECK_DIES(died, "emulated kernel planted: ");
      CHECK_DIES(died, "[replay with FUSEDNN_EMULATE_SEED=" + std::to_string(emulation::seed()) + "]");
    }
  });
}

TEST(lanes_that_diverge_die) {
  over_seeds([] {
    const std::string died = death_of(Fault::kDiverge);
    CHECK_DIES(died, "the warp diverged: ");
    CHECK_DIES(died, "shfl");
    CHECK_DIES(died, "ballot");
  });
}

TEST(lanes_that_end_while_others_wait_die) {
  check_deaths({{Fault::kEndWhileOthersWait, "a lane ended while others of its warp wait at syncwarp"},
                {Fault::kMeetAfterOthersEnded, "ended"}});
  bool after = false;
  over_seeds([&] {
    after |= death_of(Fault::kMeetAfterOthersEnded).find("syncwarp after other lanes of the warp have ended") !=
             std::string::npos;
  });
  CHECK(after, "no seed let the lane end first");
}

TEST(barriers_with_wrong_counts_die) {
  check_deaths({{Fault::kCountsDiffer, "bar.sync: warps expect different counts"},
                {Fault::kCountOfNoWarps, "bar.sync: a count of whole warps is needed"},
                {Fault::kLanesNameDifferentBarriers, "bar.sync: lanes name different barriers"},
                {Fault::kBarrier16, "bar.sync: there are 16 barriers"},
                {Fault::kBarrierLeftIncomplete, "the block ended with barrier 3 incomplete"}});
}

TEST(wrong_use_of_mbarriers_dies) {
  check_deaths({{Fault::kTooManyArrivals, "mbarrier: more arrivals than it was initialised for"},
                {Fault::kNotInitialised, "an mbarrier that was not initialised"},
                {Fault::kCountZero, "mbarrier: a count of 1 to 2^20 - 1 is needed"},
                {Fault::kInitElsewhere, "mbarrier.init in another block"},
                {Fault::kTryElsewhere, "mbarrier.try_wait in another block"},
                {Fault::kDataAndBarrierApart, "st.async: data and mbarrier lie in different blocks"},
                {Fault::kStoreNamesNoBarrier, "a remote store names no initialised mbarrier"}});
}

TEST(wrong_use_of_clusters_dies) {
  check_deaths(
      {{Fault::kArriveTwice, "barrier.cluster.arrive twice without a wait"},
       {Fault::kWaitWithoutArrive, "barrier.cluster.wait without an arrive"},
       {Fault::kReadAnEndedBlock, "the shared memory of a block that has ended"},
       {Fault::kStoreNamesAnUnfencedBarrier, "a remote store names an mbarrier that was initialised without a"},
       {Fault::kBeyondTheCluster, "an address of shared memory beyond the cluster"}});
  bool reached = false;
  over_seeds([&] {
    const std::string died = death_of(Fault::kStoreToAnEndedBlock);
    reached |= died.find("a remote store reached block ") != std::string::npos &&
               died.find(" after its end") != std::string::npos;
  });
  CHECK(reached, "no store came late enough");
}

TEST(wrong_addresses_die) {
  check_deaths({{Fault::kOutside, "an address outside the block's shared memory"},
                {Fault::kNoSharedAddress, "no address of shared memory"},
                {Fault::kRemoteNotAligned, "an address of shared memory not aligned to 16 bytes"},
                {Fault::kWriteBehind, "a thread wrote behind the block's shared memory"},
                {Fault::kCopyOutside, "cp.async outside shared memory"},
                {Fault::kCopyNotAligned, "cp.async: an address is not aligned to 16 bytes"},
                {Fault::kLoadNotAligned, "a 16-byte load is not aligned"},
                {Fault::kMatrixNotAligned, "ldmatrix: a row is not aligned to 16 bytes"},
                {Fault::kStoreNotAligned, "a store is not aligned"}});
}

TEST(deadlocks_die_and_name_where_threads_wait) {
  check_deaths({{Fault::kBarrierWaitsForNobody, "deadlock: 64 threads at bar.sync;"}});
}

// One seed: it takes millions of turns.
TEST(polling_for_ever_dies) {
  CHECK_DIES(death_of(Fault::kPollForEver), "polls for ever: a flag that nobody sets");
  CHECK_DIES(death_of(Fault::kWaitForALaterBlock), "polls for ever: block 2");
}

TEST(a_kernel_that_launches_a_kernel_dies) {
  check_deaths({{Fault::kLaunch, "a kernel cannot launch a kernel here"}});
}

__global__ void die_there() {
  if (blockIdx.x == 2 && blockIdx.y == 1 && threadIdx.x == 37) emulation::die("the end");
}

TEST(a_death_names_block_warp_lane_and_seed) {
  over_seeds([] {
    LaunchShape shape = blocks(3, 64);
    shape.grid[1] = 2;
    const std::string expected =
        "emulated kernel planted: the end (block (2, 1, 0), warp 1, lane 5) [replay with "
        "FUSEDNN_EMULATE_SEED=" +
        std::to_string(emulation::seed()) + "]";
    const std::string died = run(die_there, shape);
    CHECK(died == expected, died);
  });
}

TEST(a_death_names_the_seed_that_its_launch_had) {
  const uint64_t before = emulation::seed();
  LaunchShape shape = blocks(3, 64);
  shape.grid[1] = 2;
  emulation::set_seed(77);
  start(die_there, shape);
  emulation::set_seed(78);
  const std::string died = text(settle());
  CHECK_DIES(died, "FUSEDNN_EMULATE_SEED=77]");
  emulation::set_seed(before);
}

TEST(launches_behind_a_death_do_not_run_and_the_next_ones_do) {
  u32 first = 0, second = 0;
  LaunchShape shape = blocks(3, 64);
  shape.grid[1] = 2;
  start(die_there, shape);
  start(set_ended, blocks(1, 32), &first);
  start(set_ended, programmatic(1, 32), &first);
  CHECK_DIES(text(settle()), "the end");
  CHECK(first == 0, "a launch behind the death ran");
  CHECK(settle() == nullptr, "a death is told twice");
  CHECK(run(set_ended, blocks(1, 32), &second).empty() && second == 1, "the machine does not go on");
}

TEST(impossible_launches_are_refused) {
  u32 ended = 0;
  const auto refusal = [&](auto change) {
    LaunchShape shape = blocks(4, 32);
    change(shape);
    return run(set_ended, shape, &ended);
  };
  CHECK_DIES(refusal([](LaunchShape& s) { s.threads = 33; }), "a block needs 32, 64 ... 1024 threads");
  CHECK_DIES(refusal([](LaunchShape& s) { s.threads = 1056; }), "a block needs 32, 64 ... 1024 threads");
  CHECK_DIES(refusal([](LaunchShape& s) { s.threads = 0; }), "a block needs 32, 64 ... 1024 threads");
  CHECK_DIES(refusal([](LaunchShape& s) { s.grid[2] = 0; }), "the grid is empty");
  CHECK_DIES(refusal([](LaunchShape& s) { s.grid[1] = 65536; }), "the grid exceeds 65535 in y or z");
  CHECK_DIES(refusal([](LaunchShape& s) { s.shared_bytes = 227 * 1024 + 1; }), "more than 227 KiB of shared memory");
  CHECK_DIES(refusal([](LaunchShape& s) { s.cluster = 3; }), "the grid is no multiple of the cluster");
  CHECK(ended == 0, "a refused launch ran");
}

}  // namespace
