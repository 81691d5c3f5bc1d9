// Scratch memory of one call.
#pragma once

#include <cstddef>

namespace fusednn::cpu {

constexpr size_t kCacheLine = 64;

// For tests: scratch memory begins as NaN of every dtype, so that what is read before it is written shows.
inline bool poisons_workspaces = false;

constexpr long round_up(long n, long multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

struct Scratch;

// Hands out cache-line-aligned arrays in two passes over the same code: the first counts, the second gives memory.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace();

  void allocate();  // throws std::bad_alloc; between the passes
  void* take(size_t bytes);

 private:
  Scratch* block_ = nullptr;
  size_t used_ = 0;
};

// As many as are known when it is made.
template <class T>
class Array {
 public:
  explicit Array(long n) : first_(new T[static_cast<size_t>(n)]()) {}
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { delete[] first_; }
  T& operator[](long i) const { return first_[i]; }

 private:
  T* first_;
};

}  // namespace fusednn::cpu
