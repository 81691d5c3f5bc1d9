#include "cpu/workspace.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

namespace fusednn::cpu {
namespace {

// Of the process: what the last call gave back, for the next one. Memory that is new to the process comes page by page,
// each zeroed by the system as it is touched, which takes as long as a layer that is not large.
constexpr size_t kMostKept = size_t{64} << 20;
constexpr size_t kHugePage = size_t{2} << 20;
std::atomic<Scratch*> kept = nullptr;

}  // namespace

struct alignas(kCacheLine) Scratch {
  size_t bytes;

  // So many, behind a line of its own. What takes a huge page or more comes in such, where the system has them.
  static Scratch* of(size_t bytes) {
    const size_t whole = kCacheLine + bytes, page = whole < kHugePage ? kCacheLine : kHugePage;
    const size_t rounded = (whole + page - 1) / page * page;
    void* memory = std::aligned_alloc(page, rounded);
    if (memory == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    if (page == kHugePage) madvise(memory, rounded, MADV_HUGEPAGE);
#endif
    return new (memory) Scratch{bytes};
  }
};

Workspace::~Workspace() {
  const bool keeps = block_ != nullptr && block_->bytes <= kMostKept && !poisons_workspaces;
  std::free(keeps ? kept.exchange(block_) : block_);
}

void Workspace::allocate() {
  block_ = kept.exchange(nullptr);
  if (block_ == nullptr || block_->bytes < used_) {
    std::free(block_);
    block_ = nullptr;
    block_ = Scratch::of(used_);
  }
  if (poisons_workspaces) std::memset(block_ + 1, 0xff, used_);
  used_ = 0;
}

void* Workspace::take(size_t bytes) {
  void* p = block_ == nullptr ? nullptr : reinterpret_cast<char*>(block_ + 1) + used_;
  used_ += static_cast<size_t>(round_up(static_cast<long>(bytes), kCacheLine));
  return p;
}

}  // namespace fusednn::cpu
