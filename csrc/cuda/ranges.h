// Ranges on the host's time line, for profilers: a call, and each chunk of steps that are launches of their own.
#pragma once

#include "cuda/launch.h"

namespace fusednn::cuda {

struct RangeListener {
  void (*begin)(const char* name);
  void (*end)();
};

// Null: nobody listens, which costs a look at this. NVTX does, with the domain "fusednn", where FUSEDNN_NVTX=1 stands
// in the environment when the library is loaded, and NVTX's headers were there when it was compiled.
extern const RangeListener* range_listener;

class Range {
 public:
  template <class Name>  // gives a string; asked only where somebody listens. Launches that are only told have no time
  explicit Range(Name name) : listener_(witness == nullptr ? range_listener : nullptr) {
    if (listener_ != nullptr) listener_->begin(name().c_str());
  }
  ~Range() {
    if (listener_ != nullptr) listener_->end();
  }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;

 private:
  const RangeListener* listener_;
};

}  // namespace fusednn::cuda
