// How the host runs a sequence: what the rungs share.
#pragma once

#include "cuda/gemm.h"
#include "cuda/states.h"
#include "cuda/steps.h"

// Ends the caller with a call's message, if it has one.
#define FUSEDNN_TRY(call)               \
  do {                                  \
    const char* error = (call);         \
    if (error != nullptr) return error; \
  } while (false)

namespace fusednn::cuda {

// Hands out parts of the caller's workspace; with a null base it only counts.
class Workspace {
 public:
  explicit Workspace(void* base) : base_(static_cast<char*>(base)) {}

  void* take(size_t bytes) {
    char* p = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (bytes + 255) / 256 * 256;
    return p;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

// The rungs that take many launches.
const char* run_forward(const RecurrentForward& args);
const char* run_backward(const RecurrentBackward& args);
size_t forward_workspace(const RecurrentForward& args);
size_t backward_workspace(const RecurrentBackward& args);

// The rungs that take one.
const char* run_persistent_forward(const RecurrentForward& args);
const char* run_persistent_backward(const RecurrentBackward& args);
size_t persistent_workspace(const RecurrentForward& args);
size_t persistent_workspace(const RecurrentBackward& args);

}  // namespace fusednn::cuda
