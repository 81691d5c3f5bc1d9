// The machine that runs CUDA kernels on a CPU: its threads are fibers under one seeded scheduler, and it is as hostile
// as the programming model allows. docs/kernels/emulation.md says what it promises.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace fusednn::emulation {

struct Index3 {
  unsigned x = 1, y = 1, z = 1;
};

struct Shape {
  Index3 grid, block;
  unsigned cluster = 1;       // blocks along x that run together
  size_t shared_bytes = 0;    // dynamic
  bool cooperative = false;   // all blocks run together
  bool programmatic = false;  // may begin before the launch in front of it has ended
};

// ------- from the host

// Runs a kernel, or holds it back until the next launch or synchronize(): a programmatic launch behind it begins first.
// Returns null or a message that lives until the next call; so does synchronize(), for all launches before it.
const char* launch(const char* name, const Shape& shape, std::function<void()> kernel);
const char* synchronize();

// The schedule of all launches from here on; FUSEDNN_EMULATE_SEED at the start. A message of failure names it.
void set_seed(uint64_t seed);
uint64_t seed();

// Kernels run and threads switched since the start, for tests of the machine itself.
struct Counts {
  uint64_t launches, switches;
};
Counts counts();

// ------- from a kernel: the thread that runs now

const Index3& thread_index();
const Index3& block_index();
const Index3& block_size();
const Index3& grid_size();
unsigned lane();
bool running();  // false on the host

[[noreturn]] void die(const std::string& what);  // ends the launch with a message; the host gets it

// All 32 lanes of the warp meet; the last one calls act(slots, context), with each lane's slot, before any goes on.
void meet(const char* name, void* slot, void (*act)(void* const* slots, void* context), void* context);

template <class T, class Act>
void together(const char* name, T& mine, Act act) {
  meet(
      name, &mine,
      [](void* const* slots, void* context) { (*static_cast<Act*>(context))(reinterpret_cast<T* const*>(slots)); },
      &act);
}

void* dynamic_shared();  // of this block; filled with NaN before the block starts

// bar.sync and bar.arrive of warps; threads is a multiple of 32.
void barrier_sync(unsigned id, unsigned threads);
void barrier_arrive(unsigned id, unsigned threads);

void spin(const char* what);  // called in every turn of a polling loop

// Asynchronous copies of this thread, from global to shared memory. They land at the latest when waited for.
void copy_async(void* shared, const void* global, size_t bytes, size_t valid);
void copy_commit();
void copy_wait(unsigned groups_left);

// Stores to global memory that other blocks may see late. A release, or a fence, lands all that this block stored.
void store_late(void* to, const void* from, size_t bytes);
void land_stores();
void land_stores_to(const void* at, size_t bytes);  // before a load by the same block

// A relaxed load may still give what another block's store replaced, word by word, unless this block acquired since.
void load_early(void* to, const void* from, size_t bytes);
void acquire();

// Clusters. An address of shared memory is 32 bits: the rank of the block in the cluster above the offset.
unsigned cluster_rank();
unsigned cluster_size();
uint32_t shared_address(const void* p);
void* at_shared(uint32_t address, size_t bytes, size_t alignment);  // dies where it is no memory of a live block
void store_async(uint32_t to, const void* from, size_t bytes, uint32_t barrier);
void cluster_arrive();
void cluster_wait();

// Barriers in shared memory with a count of arrivals and of bytes.
void mbarrier_init(uint32_t at, unsigned count);
void mbarrier_init_fence();  // other blocks may count at what this one initialised
void mbarrier_expect(uint32_t at, unsigned bytes);
void mbarrier_arrive(uint32_t at);
bool mbarrier_done(uint32_t at, unsigned parity);

void dependency_wait();  // griddepcontrol.wait: what launches in front of this one wrote is there

}  // namespace fusednn::emulation
