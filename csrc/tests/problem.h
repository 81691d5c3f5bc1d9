// Random problems, and calls of a provider on them in any dtype: the CPU's, or with
// FUSEDNN_TEST_STRATEGY=gemm|step|graph|block|cluster|grid the CUDA kernels, emulated or, in a test that was compiled
// as CUDA, on the GPU.
#pragma once

#include <memory>
#include <sstream>
#include <string>

#include "api.h"
#include "tests/naive.h"

namespace fusednn::testing {

struct Size {
  long batch, steps, hidden, proj, directions;  // proj 0: no projection
  bool packed = false, bias = true;
};

inline std::string text(const Size& s) {
  std::ostringstream out;
  out << "B" << s.batch << "-T" << s.steps << "-H" << s.hidden << "-P" << s.proj << "-D" << s.directions;
  out << (s.packed ? "-packed" : "") << (s.bias ? "" : "-nobias");
  return out.str();
}

// The nearest value of the dtype: by scaling to its number of mantissa bits (exact in double).
double round_to(Dtype dtype, double x);

Problem make_problem(const Size& size, const CellInfo& cell, Dtype dtype, unsigned seed);

// The same with an input part that is left to the provider: x of `inputs` columns, and the gates that it makes.
Problem with_inputs(Problem problem, long inputs, const CellInfo& cell, Dtype dtype, unsigned seed);

// The same with every option; `heads` must divide its directions, which then count heads too.
Problem with_options(Problem problem, long heads, const CellInfo& cell, Dtype dtype, unsigned seed);

// The same with layers above it, `layers` in all.
Problem with_layers(Problem problem, long layers, const CellInfo& cell, Dtype dtype, unsigned seed);

// The strategy of the CUDA kernels under test, or null: the CPU's.
const char* cuda_strategy();
const Provider& provider_of(const char* strategy);

// A call of a provider with its tensors. Each output lies between guards that must survive, and starts as NaN; each
// input is a copy of its exact size, so that AddressSanitizer and compute-sanitizer see a read beyond it.
class ForwardCall {
 public:
  ForwardCall(const Problem& p, const CellInfo& cell, Dtype dtype, int threads, bool save = true,
              const char* strategy = cuda_strategy());
  ~ForwardCall();
  void run();
  Outputs read() const;
  const RecurrentForward& arguments() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

class BackwardCall {
 public:
  BackwardCall(const Problem& p, const Outputs& forward, const CellInfo& cell, Dtype dtype, int threads,
               const char* strategy = cuda_strategy());
  ~BackwardCall();
  void run();
  Gradients read() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

Outputs run_forward(const Problem& p, const CellInfo& cell, Dtype dtype, int threads, bool save = true);
Gradients run_backward(const Problem& p, const Outputs& forward, const CellInfo& cell, Dtype dtype, int threads);

Outputs naive_forward(const Problem& p, const CellInfo& cell, Dtype dtype);
Gradients naive_backward(const Problem& p, const CellInfo& cell, Dtype dtype);

// The largest difference, in units of eps times the largest true value.
double distance(const Values& got, const Values& truth, double eps);

// From here on fp32 products of CUDA kernels may use TF32.
void allow_tf32(bool allow);

// Calls visit for each instruction set of this machine, with it chosen; for CUDA kernels once.
template <class Visit>
void for_each_isa(Visit visit) {
  if (cuda_strategy() != nullptr) return visit(cuda_strategy());
  for (int i = 0; i < isa_count(); ++i) {
    if (!isa_supported(i)) continue;
    set_isa(isa_name(i));
    visit(isa_name(i));
  }
  set_isa("");
}

template <class Visit>
void for_each_cell(Visit visit) {
  for (int i = 0; i < cell_count(); ++i) visit(cell_info(i));
}

}  // namespace fusednn::testing
