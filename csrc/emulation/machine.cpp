#include "emulation/machine.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <unordered_map>
#include <vector>

#include "emulation/fiber.h"

namespace fusednn::emulation {
namespace {

constexpr unsigned kLanes = 32, kNamedBarriers = 16;
constexpr size_t kGuard = 64;              // bytes behind the shared memory that must survive
constexpr uint64_t kMostSpins = 20000000;  // turns of polling loops without anything else happening
constexpr uint64_t kEarlyBlocks = 16;      // of a programmatic launch that begin before the launch in front
constexpr uint64_t kStall = 2000;          // picks for which the stalled warp is passed over
constexpr uint64_t kIdle = 16;             // of so many stores one lands when nothing else can happen

struct Block;
struct Run;
struct Warp;

struct Copy {
  void* to;
  const void* from;
  size_t bytes, valid;
};

void land(const Copy& copy) {
  std::memcpy(copy.to, copy.from, copy.valid);
  std::memset(static_cast<char*>(copy.to) + copy.valid, 0, copy.bytes - copy.valid);
}

enum class State { kReady, kWaiting, kDone };

struct Thread {
  Fiber fiber;
  Warp* warp = nullptr;
  unsigned lane = 0;
  Index3 index;
  State state = State::kReady;
  const char* where = "its start";  // what it last waited for
  bool polls = false;               // left in a polling loop
  std::vector<Copy> copies;         // not committed
  std::deque<std::vector<Copy>> groups;
  bool cluster_arrived = false;
  uint64_t cluster_generation = 0;
};

struct Warp {
  Block* block = nullptr;
  unsigned number = 0;
  Thread threads[kLanes];
  const char* meeting = nullptr;
  void* slots[kLanes];
  unsigned arrived = 0, done = 0;
  uint64_t seen = 0, polled = 0;  // the event before the end of its last turn; the one after which it polled in vain

  bool ready() const {
    return std::any_of(threads, threads + kLanes, [](const Thread& t) { return t.state == State::kReady; });
  }
};

struct Barrier {
  unsigned arrived = 0, expected = 0;
  uint64_t generation = 0;
  std::vector<Thread*> waiting;
};

struct MemoryBarrier {
  unsigned count;
  int64_t pending;
  int64_t bytes = 0;
  uint64_t phase = 0;
  bool fenced = false;  // other blocks know of it
};

struct Cluster {
  std::vector<Block*> blocks;
  unsigned arrived = 0;
  uint64_t generation = 0;
  std::vector<Thread*> waiting;
};

struct Block {
  Run* run = nullptr;
  Cluster* cluster = nullptr;
  unsigned rank = 0;
  Index3 index;
  std::vector<std::unique_ptr<Warp>> warps;
  char* shared = nullptr;
  Barrier barriers[kNamedBarriers];
  std::map<uint32_t, MemoryBarrier> memory_barriers;
  uint64_t acquired = 0;                             // the event up to which it sees what others stored
  std::unordered_map<const char*, uint64_t> newest;  // words of which it saw what was stored later, and when
  unsigned threads_left = 0;

  ~Block() { std::free(shared); }
};

// A store that other blocks do not see yet: to global memory, or to a block's shared memory with a barrier there.
struct Store {
  Block* from;
  void* to;
  size_t bytes;
  unsigned char data[16];
  Block* target = nullptr;
  uint32_t address = 0, barrier = 0;
  bool idle = false;

  bool overlaps(const void* at, size_t count) const {
    const char *mine = static_cast<const char*>(to), *other = static_cast<const char*>(at);
    return target == nullptr && mine < other + count && other < mine + bytes;
  }
};

// What a store to a word of global memory replaced: another block may still read it.
struct Replaced {
  const Block* by;
  uint64_t when;
  uint32_t word;
};

Thread* current = nullptr;
uint64_t schedule_seed = [] {
  const char* text = std::getenv("FUSEDNN_EMULATE_SEED");
  return text == nullptr ? uint64_t{1} : std::strtoull(text, nullptr, 10);
}();
Counts total{0, 0};

std::string text(const Index3& i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

struct Death {
  std::string message;
};

// One launch.
struct Run {
  std::string name;
  Shape shape;
  std::function<void()> kernel;
  const uint64_t seed = schedule_seed;
  std::mt19937_64 random{seed};
  std::vector<std::unique_ptr<Block>> blocks;  // that run together now
  std::vector<std::unique_ptr<Cluster>> clusters;
  std::vector<Warp*> warps;
  std::vector<Store> stores;
  std::unordered_map<const char*, Replaced> replaced;
  std::vector<Thread*> held;  // at dependency_wait
  bool dependency_met = true;
  bool overtakes = false, waited = false;  // begins before the launch in front has ended; waits for it somewhere
  uint64_t begun = 0;                      // blocks
  uint64_t progress = 0, spins = 0, picks = 0;
  uint64_t events = 1;  // that a polling loop may wait for
  Warp* stalled = nullptr;
  std::string failure;

  uint64_t all_blocks() const { return uint64_t{shape.grid.x} * shape.grid.y * shape.grid.z; }

  uint64_t together() const { return shape.cooperative ? all_blocks() : shape.cluster; }  // blocks that must be

  uint64_t draw(uint64_t n) { return random() % n; }

  // ------- blocks

  void begin(uint64_t count) {
    blocks.clear(), clusters.clear(), warps.clear();
    for (uint64_t i = 0; i < count; ++i) begin_block(begun++);
    stalled = warps.size() > 1 && draw(4) == 0 ? warps[draw(warps.size())] : nullptr;
    picks = 0;
  }

  void begin_block(uint64_t number) {
    auto block = std::make_unique<Block>();
    block->run = this;
    const uint64_t plane = uint64_t{shape.grid.x} * shape.grid.y;
    block->index = {static_cast<unsigned>(number % shape.grid.x), static_cast<unsigned>(number % plane / shape.grid.x),
                    static_cast<unsigned>(number / plane)};
    block->rank = block->index.x % shape.cluster;
    if (block->rank == 0) clusters.push_back(std::make_unique<Cluster>());
    block->cluster = clusters.back().get();
    block->cluster->blocks.push_back(block.get());
    const size_t bytes = (shape.shared_bytes + kGuard + 1023) / 1024 * 1024;
    block->shared = static_cast<char*>(std::aligned_alloc(1024, bytes));
    std::memset(block->shared, 0xff, bytes);  // NaN in every floating-point type
    const unsigned threads = shape.block.x * shape.block.y * shape.block.z;
    block->threads_left = threads;
    for (unsigned w = 0; w < threads / kLanes; ++w) {
      block->warps.push_back(std::make_unique<Warp>());
      Warp& warp = *block->warps.back();
      warp.block = block.get(), warp.number = w;
      for (unsigned l = 0; l < kLanes; ++l) {
        Thread& t = warp.threads[l];
        const unsigned at = w * kLanes + l;
        t.warp = &warp, t.lane = l;
        t.index = {at % shape.block.x, at / shape.block.x % shape.block.y, at / shape.block.x / shape.block.y};
        t.fiber.start(&Run::body, &t);
      }
      warps.push_back(&warp);
    }
    blocks.push_back(std::move(block));
  }

  static void body(void* context) {
    Thread& t = *static_cast<Thread*>(context);
    Run& run = *t.warp->block->run;
    try {
      run.kernel();
      end_thread(t);
    } catch (const Death& death) {
      run.failure = death.message;
    }
  }

  static void end_thread(Thread& t) {
    Warp& warp = *t.warp;
    t.state = State::kDone;
    ++warp.done;
    ++warp.block->run->progress;
    if (warp.arrived > 0) die(std::string("a lane ended while others of its warp wait at ") + warp.meeting);
    if (--warp.block->threads_left == 0) end_block(*warp.block);
  }

  static void end_block(Block& block) {
    for (unsigned i = 0; i < kNamedBarriers; ++i) {
      if (block.barriers[i].arrived > 0) die("the block ended with barrier " + std::to_string(i) + " incomplete");
    }
    const char* guard = block.shared + block.run->shape.shared_bytes;
    if (std::any_of(guard, guard + kGuard, [](char c) { return c != '\xff'; })) {
      die("a thread wrote behind the block's shared memory");
    }
  }

  // ------- the scheduler

  // Until all blocks begun have ended, or all that is left waits for the launches in front. False: failed.
  bool advance() {
    for (;;) {
      if (!failure.empty()) return false;
      if (!stores.empty() && draw(4) == 0) {
        const size_t at = draw(stores.size());
        if (!stores[at].idle) land_store(at);
      }
      Warp* warp = pick();
      if (warp == nullptr) {
        if (std::all_of(warps.begin(), warps.end(), [](Warp* w) { return w->done == kLanes; })) break;
        if (!stores.empty()) {
          land_store(draw(stores.size()));
        } else if (!dependency_met && !held.empty()) {
          return true;
        } else {
          failure = deadlock();
        }
        continue;
      }
      turn(*warp);
    }
    while (!stores.empty() && failure.empty()) land_store(draw(stores.size()));
    return failure.empty();
  }

  // One that can do something; else, when no store is under way, the stalled one; else one that can only poll again for
  // what has not happened. Null: none.
  Warp* pick() {
    const bool pass_over = stalled != nullptr && ++picks < kStall;
    const size_t first = draw(warps.size());
    Warp *late = nullptr, *vain = nullptr;
    for (size_t i = 0; i < warps.size(); ++i) {
      Warp* warp = warps[(first + i) % warps.size()];
      if (warp->done == kLanes || !warp->ready()) continue;
      if (warp->polled == events) {
        vain = warp;
      } else if (pass_over && warp == stalled) {
        late = warp;
      } else {
        return warp;
      }
    }
    return !stores.empty() ? nullptr : late != nullptr ? late : vain;
  }

  // Each ready lane runs until it waits, in an order that changes from turn to turn.
  void turn(Warp& warp) {
    const unsigned first = static_cast<unsigned>(draw(kLanes));
    const unsigned step = draw(2) == 0 ? 1 : kLanes - 1;
    bool in_vain = true;
    for (unsigned i = 0; i < kLanes && failure.empty(); ++i) {
      Thread& t = warp.threads[(first + i * step) % kLanes];
      if (t.state != State::kReady) continue;
      ++total.switches;
      const bool polled = t.polls;
      t.polls = false;
      current = &t;
      t.fiber.enter();
      current = nullptr;
      in_vain = in_vain && polled && t.polls;
    }
    if (in_vain) warp.polled = warp.seen;
    warp.seen = events;
  }

  std::string deadlock() const {
    std::map<std::string, unsigned> places;
    for (const Warp* warp : warps) {
      for (const Thread& t : warp->threads) {
        if (t.state == State::kWaiting) ++places[t.where];
      }
    }
    std::string out = "deadlock:";
    for (const auto& [place, count] : places) out += " " + std::to_string(count) + " threads at " + place + ";";
    return failed(out);
  }

  std::string failed(const std::string& what) const {
    return "emulated kernel " + name + ": " + what + " [replay with FUSEDNN_EMULATE_SEED=" + std::to_string(seed) + "]";
  }

  // ------- stores under way

  void land_store(size_t at) {
    // Stores of a block to one address keep their order.
    for (size_t i = 0; i < at; ++i) {
      if (stores[i].from == stores[at].from && stores[at].overlaps(stores[i].to, stores[i].bytes)) {
        at = i;
        break;
      }
    }
    const Store store = stores[at];
    stores.erase(stores.begin() + static_cast<std::ptrdiff_t>(at));
    ++progress;
    if (store.target == nullptr) {
      ++events;
      for (size_t at = 0; at < store.bytes; at += 4) {
        const char* to = static_cast<const char*>(store.to) + at;
        std::memcpy(&(replaced[to] = {store.from, events, 0}).word, to, 4);
      }
      std::memcpy(store.to, store.data, store.bytes);
      return;
    }
    auto found = store.target->memory_barriers.find(store.barrier);
    if (found == store.target->memory_barriers.end()) {
      failure = failed("a remote store names no initialised mbarrier");
      return;
    }
    if (!found->second.fenced && store.from != store.target) {
      failure = failed("a remote store names an mbarrier that was initialised without a fence");
      return;
    }
    if (store.target->threads_left == 0) {
      failure = failed("a remote store reached block " + text(store.target->index) + " after its end");
      return;
    }
    std::memcpy(store.target->shared + store.address, store.data, store.bytes);
    found->second.bytes -= static_cast<int64_t>(store.bytes);
    complete(found->second);
  }

  void complete(MemoryBarrier& barrier) {
    if (barrier.pending != 0 || barrier.bytes != 0) return;
    ++barrier.phase;
    barrier.pending = barrier.count;
    ++progress, ++events;
  }

  void wake(std::vector<Thread*>& waiting) {
    for (Thread* t : waiting) t->state = State::kReady;
    waiting.clear();
    ++progress;
  }
};

Run& here() {
  return *current->warp->block->run;
}

void wait_at(const char* where) {
  current->state = State::kWaiting;
  current->where = where;
  current->fiber.leave();
}

// ------- launches, in the order of the stream

std::unique_ptr<Run> held;  // the last launch, not finished
std::string sticky;         // the first failure since synchronize()
thread_local std::string message;

void finish(Run& run) {
  if (!sticky.empty()) return;
  if (run.begun > 0 && !run.advance()) sticky = run.failure;
  while (sticky.empty() && run.begun < run.all_blocks()) {
    run.begin(run.together());
    if (!run.advance()) sticky = run.failure;
  }
  if (sticky.empty() && run.overtakes && !run.waited) {
    sticky = run.failed("ended without dependency_wait: what comes behind may overtake what stands in front");
  }
}

void finish_held() {
  if (held == nullptr) return;
  const std::unique_ptr<Run> run = std::move(held);
  finish(*run);
}

const char* refuse(const std::string& what) {
  message = "emulated launch: " + what;
  return message.c_str();
}

}  // namespace

const char* launch(const char* name, const Shape& shape, std::function<void()> kernel) {
  if (current != nullptr) die("a kernel cannot launch a kernel here");
  const unsigned threads = shape.block.x * shape.block.y * shape.block.z;
  if (threads == 0 || threads > 1024 || threads % kLanes != 0) return refuse("a block needs 32, 64 ... 1024 threads");
  if (shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return refuse("the grid is empty");
  if (shape.grid.y > 65535 || shape.grid.z > 65535) return refuse("the grid exceeds 65535 in y or z");
  if (shape.shared_bytes > 227 * 1024) return refuse("more than 227 KiB of shared memory");
  if (shape.cluster > 16 || shape.grid.x % shape.cluster != 0) return refuse("the grid is no multiple of the cluster");
  ++total.launches;
  auto run = std::make_unique<Run>();
  run->name = name, run->shape = shape, run->kernel = std::move(kernel);
  if (shape.programmatic && held != nullptr) {
    run->dependency_met = false, run->overtakes = true;
    const uint64_t together = run->together();
    run->begin(std::min(run->all_blocks(), std::max(together, kEarlyBlocks / together * together)));
    if (sticky.empty() && !run->advance()) sticky = run->failure;
    finish_held();
    run->dependency_met = true;
    run->wake(run->held);
  } else {
    finish_held();
  }
  held = std::move(run);
  return nullptr;
}

const char* synchronize() {
  finish_held();
  if (sticky.empty()) return nullptr;
  message = std::move(sticky);
  sticky.clear();
  return message.c_str();
}

void set_seed(uint64_t value) {
  schedule_seed = value;
}
uint64_t seed() {
  return schedule_seed;
}
Counts counts() {
  return total;
}

const Index3& thread_index() {
  return current->index;
}
const Index3& block_index() {
  return current->warp->block->index;
}
const Index3& block_size() {
  return here().shape.block;
}
const Index3& grid_size() {
  return here().shape.grid;
}
unsigned lane() {
  return current->lane;
}
bool running() {
  return current != nullptr;
}

void die(const std::string& what) {
  if (current == nullptr) {
    std::fprintf(stderr, "fusednn emulation: %s\n", what.c_str());
    std::abort();
  }
  const Thread& t = *current;
  throw Death{here().failed(what + " (block " + text(t.warp->block->index) + ", warp " +
                            std::to_string(t.warp->number) + ", lane " + std::to_string(t.lane) + ")")};
}

void meet(const char* name, void* slot, void (*act)(void* const*, void*), void* context) {
  Warp& warp = *current->warp;
  if (warp.done > 0) die(std::string(name) + " after other lanes of the warp have ended");
  if (warp.arrived == 0) {
    warp.meeting = name;
  } else if (std::strcmp(warp.meeting, name) != 0) {
    die(std::string("the warp diverged: ") + name + " here, " + warp.meeting + " in other lanes");
  }
  warp.slots[current->lane] = slot;
  if (++warp.arrived < kLanes) return wait_at(name);
  act(warp.slots, context);
  warp.arrived = 0;
  for (Thread& t : warp.threads) t.state = State::kReady;
  ++here().progress;
}

void* dynamic_shared() {
  return current->warp->block->shared;
}

namespace {

// A whole warp arrives; the barrier's generation before it.
Barrier& arrive(const char* name, unsigned id, unsigned threads, uint64_t& generation) {
  if (id >= kNamedBarriers) die(std::string(name) + ": there are 16 barriers, not " + std::to_string(id + 1));
  if (threads == 0 || threads % kLanes != 0) die(std::string(name) + ": a count of whole warps is needed");
  Barrier& barrier = current->warp->block->barriers[id];
  struct Asked {
    unsigned id, threads;
    uint64_t generation;
  } mine{id, threads, 0};
  together(name, mine, [&](Asked* const* all) {
    for (unsigned l = 0; l < kLanes; ++l) {
      if (all[l]->id != id || all[l]->threads != threads) die(std::string(name) + ": lanes name different barriers");
    }
    if (barrier.arrived == 0) barrier.expected = threads;
    if (barrier.expected != threads) die(std::string(name) + ": warps expect different counts");
    barrier.arrived += kLanes;
    if (barrier.arrived > barrier.expected) die(std::string(name) + ": more warps arrived than expected");
    for (unsigned l = 0; l < kLanes; ++l) all[l]->generation = barrier.generation;
    if (barrier.arrived < barrier.expected) return;
    barrier.arrived = 0;
    ++barrier.generation;
    here().wake(barrier.waiting);
  });
  generation = mine.generation;
  return barrier;
}

}  // namespace

void barrier_sync(unsigned id, unsigned threads) {
  uint64_t generation;
  Barrier& barrier = arrive("bar.sync", id, threads, generation);
  while (barrier.generation == generation) {
    barrier.waiting.push_back(current);
    wait_at("bar.sync");
  }
}

void barrier_arrive(unsigned id, unsigned threads) {
  uint64_t generation;
  arrive("bar.arrive", id, threads, generation);
}

void spin(const char* what) {
  Run& run = here();
  if (run.progress != 0) run.progress = run.spins = 0;
  if (++run.spins > kMostSpins) die(std::string("polls for ever: ") + what);
  current->where = what, current->polls = true;
  current->fiber.leave();
}

void copy_async(void* shared, const void* global, size_t bytes, size_t valid) {
  if (bytes != 4 && bytes != 8 && bytes != 16) die("cp.async copies 4, 8 or 16 bytes");
  if (reinterpret_cast<uintptr_t>(shared) % bytes != 0 || reinterpret_cast<uintptr_t>(global) % bytes != 0) {
    die("cp.async: an address is not aligned to " + std::to_string(bytes) + " bytes");
  }
  const Block& block = *current->warp->block;
  const char* to = static_cast<char*>(shared);
  if (to < block.shared || to + bytes > block.shared + here().shape.shared_bytes) die("cp.async outside shared memory");
  current->copies.push_back({shared, global, bytes, valid});
}

void copy_commit() {
  // Half of them land now and half only at their wait: both are allowed.
  std::vector<Copy> late;
  for (const Copy& copy : current->copies) {
    if (here().draw(2) == 0) {
      land(copy);
    } else {
      late.push_back(copy);
    }
  }
  current->copies.clear();
  current->groups.push_back(std::move(late));
}

void copy_wait(unsigned groups_left) {
  while (current->groups.size() > groups_left) {
    for (const Copy& copy : current->groups.front()) land(copy);
    current->groups.pop_front();
  }
}

void store_late(void* to, const void* from, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0) die("a store is not aligned");
  Run& run = here();
  const size_t whole = bytes > 4 && run.draw(4) == 0 ? 4 : bytes;  // the words of a vector may come one by one
  for (size_t done = 0; done < bytes; done += whole) {
    Store store{current->warp->block, static_cast<char*>(to) + done, whole, {}};
    std::memcpy(store.data, static_cast<const char*>(from) + done, whole);
    store.idle = run.draw(kIdle) == 0;
    run.stores.push_back(store);
  }
}

void land_stores() {
  Run& run = here();
  ++run.events;  // what follows a release may be stored at once
  const Block* block = current->warp->block;
  for (size_t i = 0; i < run.stores.size();) {
    if (run.stores[i].from == block && run.stores[i].target == nullptr) {
      run.land_store(i);
    } else {
      ++i;
    }
  }
}

void land_stores_to(const void* at, size_t bytes) {
  Run& run = here();
  const Block* block = current->warp->block;
  for (size_t i = 0; i < run.stores.size();) {
    if (run.stores[i].from == block && run.stores[i].overlaps(at, bytes)) {
      run.land_store(i);
    } else {
      ++i;
    }
  }
}

void acquire() {
  current->warp->block->acquired = here().events;
}

void load_early(void* to, const void* from, size_t bytes) {
  Run& run = here();
  Block& block = *current->warp->block;
  land_stores_to(from, bytes);
  std::memcpy(to, from, bytes);
  for (size_t at = 0; at < bytes; at += 4) {
    const char* word = static_cast<const char*>(from) + at;
    const auto found = run.replaced.find(word);
    if (found == run.replaced.end() || found->second.by == &block || found->second.when <= block.acquired) continue;
    uint64_t& newest = block.newest[word];
    if (newest < found->second.when && run.draw(4) == 0) {
      std::memcpy(static_cast<char*>(to) + at, &found->second.word, 4);
    } else {
      newest = found->second.when;
    }
  }
}

// ------- clusters

namespace {

constexpr unsigned kRankShift = 24;
constexpr uint32_t kBase = 1024;  // a null pointer must not be an address

Block& block_of(uint32_t address) {
  Cluster& cluster = *current->warp->block->cluster;
  const uint32_t rank = address >> kRankShift;
  if (rank >= cluster.blocks.size()) die("an address of shared memory beyond the cluster");
  return *cluster.blocks[rank];
}

uint32_t offset_of(uint32_t address, size_t bytes, size_t alignment) {
  const uint32_t at = (address & ((1u << kRankShift) - 1)) - kBase;
  if (at + bytes > here().shape.shared_bytes) die("an address outside the block's shared memory");
  if (at % alignment != 0) die("an address of shared memory not aligned to " + std::to_string(alignment) + " bytes");
  return at;
}

MemoryBarrier& own_barrier(uint32_t address) {
  Block& block = block_of(address);
  const auto found = block.memory_barriers.find(offset_of(address, 8, 8));
  if (found == block.memory_barriers.end()) die("an mbarrier that was not initialised");
  return found->second;
}

}  // namespace

unsigned cluster_rank() {
  return current->warp->block->rank;
}
unsigned cluster_size() {
  return here().shape.cluster;
}

uint32_t shared_address(const void* p) {
  const Block& block = *current->warp->block;
  const auto offset = static_cast<const char*>(p) - block.shared;
  if (offset < 0 || offset > static_cast<std::ptrdiff_t>(here().shape.shared_bytes)) die("no address of shared memory");
  return (block.rank << kRankShift) + kBase + static_cast<uint32_t>(offset);
}

void* at_shared(uint32_t address, size_t bytes, size_t alignment) {
  Block& block = block_of(address);
  if (block.threads_left == 0) die("the shared memory of a block that has ended");
  return block.shared + offset_of(address, bytes, alignment);
}

void store_async(uint32_t to, const void* from, size_t bytes, uint32_t barrier) {
  if (to >> kRankShift != barrier >> kRankShift) die("st.async: data and mbarrier lie in different blocks");
  Store store{current->warp->block, nullptr, bytes, {}};
  std::memcpy(store.data, from, bytes);
  store.target = &block_of(to);
  store.address = offset_of(to, bytes, bytes);
  store.barrier = offset_of(barrier, 8, 8);
  here().stores.push_back(store);
}

void cluster_arrive() {
  Cluster& cluster = *current->warp->block->cluster;
  if (current->cluster_arrived) die("barrier.cluster.arrive twice without a wait");
  current->cluster_arrived = true;
  current->cluster_generation = cluster.generation;
  land_stores();
  if (++cluster.arrived < cluster.blocks.size() * here().shape.block.x * here().shape.block.y * here().shape.block.z) {
    return;
  }
  cluster.arrived = 0;
  ++cluster.generation;
  here().wake(cluster.waiting);
}

void cluster_wait() {
  Cluster& cluster = *current->warp->block->cluster;
  if (!current->cluster_arrived) die("barrier.cluster.wait without an arrive");
  current->cluster_arrived = false;
  while (cluster.generation == current->cluster_generation) {
    cluster.waiting.push_back(current);
    wait_at("barrier.cluster.wait");
  }
  acquire();
}

void mbarrier_init(uint32_t at, unsigned count) {
  if (count == 0 || count >= 1u << 20) die("mbarrier: a count of 1 to 2^20 - 1 is needed");
  Block& block = block_of(at);
  if (&block != current->warp->block) die("mbarrier.init in another block");
  block.memory_barriers[offset_of(at, 8, 8)] = MemoryBarrier{count, count};
}

void mbarrier_init_fence() {
  for (auto& [at, barrier] : current->warp->block->memory_barriers) barrier.fenced = true;
}

void mbarrier_expect(uint32_t at, unsigned bytes) {
  MemoryBarrier& barrier = own_barrier(at);
  barrier.bytes += bytes;
  mbarrier_arrive(at);
}

void mbarrier_arrive(uint32_t at) {
  MemoryBarrier& barrier = own_barrier(at);
  if (--barrier.pending < 0) die("mbarrier: more arrivals than it was initialised for");
  ++here().progress;
  here().complete(barrier);
}

bool mbarrier_done(uint32_t at, unsigned parity) {
  if (&block_of(at) != current->warp->block) die("mbarrier.try_wait in another block");
  return (own_barrier(at).phase & 1) != parity;
}

void dependency_wait() {
  Run& run = here();
  run.waited = true;
  while (!run.dependency_met) {
    run.held.push_back(current);
    wait_at("griddepcontrol.wait");
  }
}

}  // namespace fusednn::emulation
