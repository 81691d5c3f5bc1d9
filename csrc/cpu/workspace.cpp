#include "cpu/workspace.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace fusednn::cpu {

struct alignas(kCacheLine) Workspace::Block {
  size_t size;

  void* memory() { return this + 1; }
};

// The process keeps one block, the largest that a call has given back, for a call to come: the allocator may return
// memory of this size to the system, and each of its pages would be asked for again.
std::atomic<Workspace::Block*> Workspace::kept_ = nullptr;
constexpr size_t kMostKept = 32 << 20;

Workspace::~Workspace() {
  if (block_ != nullptr && block_->size <= kMostKept) {
    Block* other = kept_.exchange(nullptr);
    if (other != nullptr && other->size > block_->size) std::swap(other, block_);
    std::free(other);
    block_ = kept_.exchange(block_);  // another call may have ended in between
  }
  std::free(block_);
}

void Workspace::allocate() {
  block_ = kept_.exchange(nullptr);
  if (block_ == nullptr || block_->size < used_) {
    std::free(block_);
    block_ = static_cast<Block*>(std::aligned_alloc(kCacheLine, sizeof(Block) + used_));
    if (block_ == nullptr) throw std::bad_alloc();
    block_->size = used_;
  }
  if (poisons_workspaces) std::memset(block_->memory(), 0xff, used_);
  used_ = 0;
}

void* Workspace::take(size_t bytes) {
  void* p = block_ == nullptr ? nullptr : static_cast<char*>(block_->memory()) + used_;
  used_ += static_cast<size_t>(round_up(static_cast<long>(bytes), kCacheLine));
  return p;
}

}  // namespace fusednn::cpu
