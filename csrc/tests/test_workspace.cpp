// Scratch memory: arrays on cache lines of their own, in what the last call gave back.
#include <cstdint>
#include <cstring>

#include "cpu/workspace.h"
#include "tests/check.h"

namespace {

using namespace fusednn::cpu;

// Two arrays of a call, the second of so many bytes.
struct Scratches {
  explicit Scratches(size_t bytes) {
    for (int pass = 0; pass < 2; ++pass) {
      if (pass == 1) space.allocate();
      first = static_cast<char*>(space.take(1));
      second = static_cast<char*>(space.take(bytes));
    }
    std::memset(second, 1, bytes);
  }

  Workspace space;
  char *first, *second;
};

// As outside of tests.
struct Plain {
  Plain() { poisons_workspaces = false; }
  ~Plain() { poisons_workspaces = true; }
};

}  // namespace

TEST(arrays_begin_at_cache_lines_of_their_own) {
  const Scratches a(100);
  CHECK(reinterpret_cast<uintptr_t>(a.first) % kCacheLine == 0, "the first array");
  CHECK(a.second == a.first + kCacheLine, "the second array");
}

TEST(a_call_takes_the_memory_of_the_last_one_where_it_is_enough) {
  const Plain plain;
  char* last = nullptr;
  for (const size_t bytes : {size_t{1} << 20, size_t{1} << 10, size_t{1} << 20}) {
    const Scratches a(bytes);
    CHECK(last == nullptr || a.first == last, bytes << " bytes lie elsewhere");
    last = a.first;
  }
}

TEST(calls_at_the_same_time_have_memory_of_their_own) {
  const Plain plain;
  const Scratches a(1000), b(1000);
  CHECK(a.second + 1000 <= b.first || b.second + 1000 <= a.first, "two calls share memory");
}

TEST(poisoned_memory_is_new) {
  const Scratches a(1000);
  CHECK(a.first[0] == -1, "scratch memory does not begin as NaN");
}
