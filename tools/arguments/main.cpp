// Writes down the parameters of all kernels that one call launches, and where its tensors would lie:
//   main forward|backward STRATEGY CELL DTYPE B T H padded|packed
// Built from csrc with the launch.h beside this file. No tensor exists: addresses are what a bump allocator would give.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "api.h"

extern "C" const fusednn::Provider* fusednn_provider();

namespace {

using namespace fusednn;

uint64_t next_address = 0x700000000000;

void* tensor(const char* name, int64_t bytes) {
  constexpr uint64_t kGap = 1 << 20;  // so that what reads beyond a tensor does not find the next one
  const uint64_t at = next_address;
  next_address = (at + static_cast<uint64_t>(bytes) + 2 * kGap) / kGap * kGap;
  std::printf("tensor\t%s\t%llu\t%lld\n", name, static_cast<unsigned long long>(at), static_cast<long long>(bytes));
  return reinterpret_cast<void*>(at);
}

int fail(const char* why) {
  std::fprintf(stderr, "%s\n", why);
  return 1;
}

void no_gemm(const Gemm&) {
  std::printf("launch\tlibrary GEMM\n");
}

}  // namespace

int main(int count, char** argument) {
  if (count != 9) return fail("main forward|backward STRATEGY CELL DTYPE B T H padded|packed");
  const CellInfo* cell = find_cell(argument[3]);
  if (cell == nullptr) return fail("no such cell");
  const bool wide = std::strcmp(argument[4], "float32") == 0;
  RecurrentShape s{};
  s.cell = argument[3], s.strategy = argument[2], s.dtype = wide ? Dtype::kFloat32 : Dtype::kBFloat16;
  s.batch = std::atoi(argument[5]), s.steps = std::atoi(argument[6]), s.hidden = s.proj = std::atoi(argument[7]);
  s.rows = s.batch * s.steps, s.directions = s.heads = 1, s.layers = 1, s.gemm = no_gemm, s.threads = 1;
  const std::vector<int64_t> batch_sizes(static_cast<size_t>(s.steps), s.batch);
  if (std::strcmp(argument[8], "packed") == 0) s.batch_sizes = batch_sizes.data();
  const int64_t size = wide ? 4 : 2, N = s.rows, B = s.batch, H = s.hidden, G = cell->gates;
  const bool carries = cell->cell_state;
  const auto state = [&](const char* name) { return tensor(name, size * B * H); };
  const void* h0 = state("h0");
  const void* c0 = carries ? state("c0") : nullptr;
  const void* w_hh = tensor("w_hh", size * G * H * H);
  void* y = tensor("y", size * N * H);
  void* saved = tensor("saved", size * N * cell->saved * H);
  const Provider& provider = *fusednn_provider();
  const char* error;
  if (std::strcmp(argument[1], "forward") == 0) {
    RecurrentForward a{};
    a.shape = s, a.h0 = h0, a.c0 = c0, a.w_hh = w_hh, a.y = y, a.saved = saved;
    a.gates = tensor("gates", size * N * G * H), a.b_hh = tensor("b_hh", size * G * H);
    a.h_n = state("h_n"), a.c_n = carries ? state("c_n") : nullptr;
    a.shape.workspace = tensor("workspace", static_cast<int64_t>(provider.forward_workspace(a)));
    error = provider.forward(a);
  } else {
    RecurrentBackward a{};
    a.shape = s, a.h0 = h0, a.c0 = c0, a.w_hh = w_hh, a.y = y, a.saved = saved;
    a.grad_y = tensor("grad_y", size * N * H), a.d_gates = tensor("d_gates", size * N * G * H);
    if (cell->split) a.d_recurrent = tensor("d_recurrent", size * N * G * H);
    a.d_h0 = state("d_h0"), a.d_c0 = carries ? state("d_c0") : nullptr;
    a.shape.workspace = tensor("workspace", static_cast<int64_t>(provider.backward_workspace(a)));
    error = provider.backward(a);
  }
  return error == nullptr ? 0 : fail(error);
}
