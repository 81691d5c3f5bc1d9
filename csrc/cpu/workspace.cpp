#include "cpu/workspace.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace fusednn::cpu {

namespace {

constexpr size_t kMostKept = 4 << 20;

// What a thread keeps of its last call for the next one: the allocator would give such blocks back to the system.
struct Kept {
  void* block = nullptr;
  size_t size = 0;

  ~Kept() { std::free(block); }
};
thread_local Kept kept;

}  // namespace

Workspace::~Workspace() {
  if (size_ <= kMostKept && size_ > kept.size) {
    std::swap(block_, kept.block);
    kept.size = size_;
  }
  std::free(block_);
}

void Workspace::allocate() {
  size_ = used_ + kCacheLine;
  if (size_ <= kept.size) {
    block_ = std::exchange(kept.block, nullptr);
    size_ = std::exchange(kept.size, 0);
  } else {
    block_ = std::aligned_alloc(kCacheLine, size_);
  }
  if (block_ == nullptr) throw std::bad_alloc();
  if (poisons_workspaces) std::memset(block_, 0xff, used_);
  used_ = 0;
}

void* Workspace::take(size_t bytes) {
  void* p = block_ == nullptr ? nullptr : static_cast<char*>(block_) + used_;
  used_ += static_cast<size_t>(round_up(static_cast<long>(bytes), kCacheLine));
  return p;
}

}  // namespace fusednn::cpu
