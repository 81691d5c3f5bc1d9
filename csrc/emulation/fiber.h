// A fiber: a stack of its own, entered and left by an explicit switch. One operating-system thread runs them all.
#pragma once

#include <cstddef>

namespace fusednn::emulation {

class Fiber {
 public:
  using Body = void (*)(void*);

  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();  // may be in the middle of its body: nothing on its stack is unwound

  void start(Body body, void* context);  // takes effect at the first enter()
  void enter();                          // from the scheduler, until the fiber leaves
  void leave();                          // from the fiber, back to the scheduler

 private:
  [[noreturn]] static void run();

  void* stack_ = nullptr;    // the block that holds the stack
  void* inside_ = nullptr;   // stack pointer of the fiber while it is outside
  void* outside_ = nullptr;  // stack pointer of the scheduler while the fiber runs
  Body body_ = nullptr;
  void* context_ = nullptr;
  const void* scheduler_bottom_ = nullptr;  // for AddressSanitizer
  size_t scheduler_size_ = 0;
  void* fake_stack_ = nullptr;
  void* scheduler_fake_stack_ = nullptr;
};

}  // namespace fusednn::emulation
