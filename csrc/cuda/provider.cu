// The provider of the CUDA kernels: libfusednn_cuda.so with nvcc, libfusednn_emulated.so with FUSEDNN_EMULATE.
#include <cstring>
#include <exception>
#include <string>
#include <string_view>

#include "cuda/launch.h"
#include "cuda/ranges.h"
#include "cuda/sequence.h"
#include "cuda/waits.h"

namespace fusednn {
namespace {

thread_local std::string message;

// Weights stay where they are while all steps pass.
bool persistent(const RecurrentShape& s) {
  const std::string_view name = s.strategy;
  return name == "block" || name == "cluster" || name == "grid";
}

// Null, or why the call is impossible.
const char* refusal(const RecurrentShape& s, const void* w_hr) {
  const auto refuse = [](const std::string& why) {
    message = why;
    return message.c_str();
  };
  const CellInfo* cell = find_cell(s.cell);
  if (cell == nullptr) return refuse(std::string("unknown cell '") + s.cell + "'");
  const bool gemm = std::strcmp(s.strategy, "gemm") == 0;
  const std::string named = std::string("strategy '") + s.strategy + "'";
  const bool steps = std::strcmp(s.strategy, "step") == 0 || std::strcmp(s.strategy, "graph") == 0;
  if (!gemm && !persistent(s) && !steps) return refuse("no " + named + " here");
  if (gemm && s.gemm == nullptr) return refuse("strategy 'gemm' needs a library GEMM");
  if (w_hr != nullptr && !cell->cell_state) return refuse(std::string("cell '") + s.cell + "' has no projection");
  if (w_hr != nullptr && !gemm) return refuse(named + " has no projection; 'gemm' has");
  if (persistent(s) && s.dtype == Dtype::kFloat64) return refuse(named + " has no float64; 'step' and 'gemm' have");
  if (w_hr == nullptr && s.proj != s.hidden) return refuse("without w_hr the size of h is the hidden size");
  if (s.hidden < 1 || s.proj < 1) return refuse("the hidden size must be positive");
  if (s.directions != 1 && s.directions != 2) return refuse("directions must be 1 or 2");
  if (s.heads < 1) return refuse("heads must be positive");
  if (s.layers < 1) return refuse("layers must be positive");
  const bool grid = std::strcmp(s.strategy, "grid") == 0;
  if (s.layers > 1 && !grid) return refuse(named + " walks one layer at a time; 'grid' walks several");
  if (s.layers > 1 && s.tracks() > 1) return refuse("layers that walk together have one direction and one head");
  if (s.options.norm != nullptr && !gemm) return refuse(named + " has no layer norm; 'gemm' has");
  return nullptr;
}

std::string range_of(const RecurrentShape& s, const char* way) {
  constexpr const char* kTypes[] = {"float64", "float32", "bfloat16", "float16"};
  std::string name = std::string(s.cell) + " " + s.strategy + " " + way + " " + kTypes[static_cast<int>(s.dtype)];
  name += " T=" + std::to_string(s.steps) + " B=" + std::to_string(s.batch) + " H=" + std::to_string(s.hidden);
  if (s.layers > 1) name += " L=" + std::to_string(s.layers);
  return name;
}

template <class Args>
const char* run(const Args& args, const char* way, const char* (*kernels)(const Args&)) {
  try {
    if (const char* error = refusal(args.shape, args.w_hr)) return error;
    if (cuda::witness == nullptr && cuda::take_wait_fault()) {
      return "a wait inside a persistent kernel of an earlier call expired; its results are NaN";
    }
    const cuda::Range range([&] { return range_of(args.shape, way); });
    const char* error = kernels(args);
    if (error == nullptr) return nullptr;
    message = error;
    return message.c_str();
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

const char* forward(const RecurrentForward& args) {
  return run(args, "forward", persistent(args.shape) ? cuda::run_persistent_forward : cuda::run_forward);
}
const char* backward(const RecurrentBackward& args) {
  if (args.shape.layers != 1) return "backward walks one layer at a time";
  return run(args, "backward", persistent(args.shape) ? cuda::run_persistent_backward : cuda::run_backward);
}
size_t forward_workspace(const RecurrentForward& args) {
  if (refusal(args.shape, args.w_hr) != nullptr) return 0;
  return persistent(args.shape) ? cuda::persistent_workspace(args) : cuda::forward_workspace(args);
}
size_t backward_workspace(const RecurrentBackward& args) {
  if (refusal(args.shape, args.w_hr) != nullptr) return 0;
  return persistent(args.shape) ? cuda::persistent_workspace(args) : cuda::backward_workspace(args);
}

// Sends launches to a witness while it lives.
struct Watched {
  explicit Watched(const Witness& w) { cuda::witness = &w; }
  ~Watched() { cuda::witness = nullptr; }
};
const char* forward_launches(const RecurrentForward& args, const Witness& witness) {
  const Watched watched(witness);
  return forward(args);
}
const char* backward_launches(const RecurrentBackward& args, const Witness& witness) {
  const Watched watched(witness);
  return backward(args);
}

#if defined(FUSEDNN_EMULATE)
constexpr const char* kName = "emulated";
#else
constexpr const char* kName = "cuda";
#endif

}  // namespace
}  // namespace fusednn

extern "C" __attribute__((visibility("default"))) const fusednn::Provider* fusednn_provider() {
  using namespace fusednn;
  static const Provider provider{
      kName, forward, backward, forward_workspace, backward_workspace, forward_launches, backward_launches};
  return &provider;
}
