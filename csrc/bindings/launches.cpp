#include "bindings/launches.h"

#include <stdexcept>
#include <vector>

namespace fusednn {
namespace {

// Stands for every tensor of the call; nothing reads or writes it.
char tensor;

void no_gemm(const Gemm&) {}

RecurrentShape shape_of(const Sequence& q) {
  RecurrentShape s{};
  s.cell = q.cell.c_str(), s.dtype = q.dtype, s.strategy = q.strategy.c_str(), s.allow_tf32 = q.allow_tf32;
  s.batch = q.batch, s.steps = q.steps, s.rows = q.batch * q.steps, s.hidden = q.hidden, s.directions = q.directions,
  s.heads = q.heads, s.layers = 1;
  s.proj = q.proj == 0 ? q.hidden : q.proj;
  s.threads = 1, s.gemm = no_gemm, s.workspace = &tensor;
  if (q.norm) s.options.norm = &tensor;
  return s;
}

RecurrentForward forward_of(const Sequence& q, const CellInfo& cell, bool training,
                            const std::vector<LayerWeights>& above) {
  RecurrentForward a{};
  a.shape = shape_of(q);
  a.shape.layers = q.layers, a.above = above.data(), a.last_y = q.layers > 1 && !training;
  a.gates = a.h0 = a.w_hh = a.b_hh = &tensor;
  a.y = a.h_n = &tensor;
  if (cell.cell_state) a.c0 = a.c_n = &tensor;
  if (q.proj != 0) a.w_hr = &tensor;
  if (training && cell.saved > 0) a.saved = &tensor;
  return a;
}

RecurrentBackward backward_of(const Sequence& q, const CellInfo& cell) {
  RecurrentBackward a{};
  a.shape = shape_of(q);
  a.grad_y = a.grad_h_n = a.y = a.h0 = a.w_hh = a.saved = &tensor;
  a.d_gates = a.d_h0 = &tensor;
  if (cell.cell_state) a.grad_c_n = a.c0 = a.d_c0 = &tensor;
  if (cell.split) a.d_recurrent = &tensor;
  if (q.proj != 0) a.w_hr = a.d_proj = &tensor;
  if (q.norm) a.normed = a.rstd = a.d_products = &tensor;
  return a;
}

}  // namespace

std::vector<Launched> launches(const Provider& provider, const Sequence& q, bool training) {
  const CellInfo* cell = find_cell(q.cell.c_str());
  if (cell == nullptr) throw std::invalid_argument("unknown cell '" + q.cell + "'");
  std::vector<Launched> found;
  const Witness witness{[](void* context, const char* kernel, const LaunchShape& shape) {
                          static_cast<std::vector<Launched>*>(context)->push_back({kernel, shape});
                        },
                        &found};
  const std::vector<int64_t> batch_sizes(q.packed ? static_cast<size_t>(q.steps) : 0, q.batch);
  const std::vector<LayerWeights> above(static_cast<size_t>(q.layers - 1));
  RecurrentForward forward = forward_of(q, *cell, training, above);
  RecurrentBackward backward = backward_of(q, *cell);
  forward.shape.batch_sizes = backward.shape.batch_sizes = q.packed ? batch_sizes.data() : nullptr;
  const char* error = provider.forward_launches(forward, witness);
  for (int layer = 0; layer < q.layers && error == nullptr && training; ++layer) {
    error = provider.backward_launches(backward, witness);
  }
  if (error != nullptr) throw std::invalid_argument(error);
  return found;
}

}  // namespace fusednn
