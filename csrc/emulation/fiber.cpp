#include "emulation/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define FUSEDNN_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FUSEDNN_ASAN 1
#endif
#endif
#if defined(FUSEDNN_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// void fusednn_switch(void** save, void* to): pushes the registers that a call must keep, saves the stack pointer to
// *save, takes `to` as the stack pointer and pops the registers that lie there.
extern "C" void fusednn_switch(void** save, void* to);

#if defined(__x86_64__)
__asm__(
    ".text\n.globl fusednn_switch\n.hidden fusednn_switch\n.type fusednn_switch,@function\nfusednn_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n  ret\n"
    ".size fusednn_switch, .-fusednn_switch\n");
#elif defined(__aarch64__)
__asm__(
    ".text\n.globl fusednn_switch\n.hidden fusednn_switch\n.type fusednn_switch,%function\nfusednn_switch:\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp, #0]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n"
    "  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"
    "  ldp x19, x20, [sp, #0]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n"
    "  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n  ret\n"
    ".size fusednn_switch, .-fusednn_switch\n");
#else
#error "the emulation switches stacks on x86-64 and arm64 only"
#endif

namespace fusednn::emulation {
namespace {

#if defined(FUSEDNN_ASAN)
constexpr size_t kStack = 512 * 1024;
#else
constexpr size_t kStack = 128 * 1024;
#endif
constexpr size_t kGuard = 4096;

// Stacks are kept for the next kernel: mapping one costs more than a small kernel.
std::vector<void*>& pool() {
  static std::vector<void*>* stacks = new std::vector<void*>;
  return *stacks;
}

void* take_stack() {
  if (!pool().empty()) {
    void* stack = pool().back();
    pool().pop_back();
    return stack;
  }
  void* stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED || mprotect(stack, kGuard, PROT_NONE) != 0) {
    std::perror("fusednn emulation: a stack");
    std::abort();
  }
  return stack;
}

Fiber* entered = nullptr;  // the fiber that runs now

}  // namespace

Fiber::~Fiber() {
  if (stack_ == nullptr) return;
#if defined(FUSEDNN_ASAN)
  __asan_unpoison_memory_region(static_cast<char*>(stack_) + kGuard, kStack - kGuard);
#endif
  pool().push_back(stack_);
}

void Fiber::start(Body body, void* context) {
  body_ = body, context_ = context;
  if (stack_ == nullptr) stack_ = take_stack();
  auto* top = reinterpret_cast<uint64_t*>(static_cast<char*>(stack_) + kStack);
#if defined(__x86_64__)
  *--top = 0;  // run() finds the stack as after a call: 16 bytes aligned, less a return address
  *--top = reinterpret_cast<uint64_t>(&Fiber::run);
  for (int i = 0; i < 6; ++i) *--top = 0;
#else
  top -= 20;
  for (int i = 0; i < 20; ++i) top[i] = 0;
  top[11] = reinterpret_cast<uint64_t>(&Fiber::run);  // x30
#endif
  inside_ = top;
}

void Fiber::enter() {
  Fiber* before = entered;
  entered = this;
#if defined(FUSEDNN_ASAN)
  __sanitizer_start_switch_fiber(&scheduler_fake_stack_, stack_, kStack);
#endif
  fusednn_switch(&outside_, inside_);
#if defined(FUSEDNN_ASAN)
  __sanitizer_finish_switch_fiber(scheduler_fake_stack_, nullptr, nullptr);
#endif
  entered = before;
}

void Fiber::leave() {
#if defined(FUSEDNN_ASAN)
  __sanitizer_start_switch_fiber(&fake_stack_, scheduler_bottom_, scheduler_size_);
#endif
  fusednn_switch(&inside_, outside_);
#if defined(FUSEDNN_ASAN)
  __sanitizer_finish_switch_fiber(fake_stack_, &scheduler_bottom_, &scheduler_size_);
#endif
}

void Fiber::run() {
  Fiber* self = entered;
#if defined(FUSEDNN_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &self->scheduler_bottom_, &self->scheduler_size_);
#endif
  self->body_(self->context_);
  for (;;) self->leave();
}

}  // namespace fusednn::emulation
