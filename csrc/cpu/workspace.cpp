#include "cpu/workspace.h"

#include <cstdlib>
#include <cstring>
#include <new>

namespace fusednn::cpu {

Workspace::~Workspace() {
  std::free(block_);
}

void Workspace::allocate() {
  block_ = std::aligned_alloc(kCacheLine, used_ + kCacheLine);
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
