// Registers the implementations of the operators whose schemas are in pyext/fusednn/operators.py, for tensors on the
// CPU and, once the provider "cuda" is loaded, on GPUs. The only file that includes torch, and of torch only its stable
// ABI: one build loads on torch 2.11 and later, built with CUDA or without.
//
// Python checks what users pass; the checks here keep a wrong call from reading out of bounds.
#ifndef TORCH_TARGET_VERSION
#define TORCH_TARGET_VERSION ((2ULL << 56) | (11ULL << 48))
#endif
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "api.h"
#include "bindings/providers.h"
#include "cpu/dropout.h"
#include "cpu/linear_backward.h"

namespace fusednn {
namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using SizeList = std::initializer_list<int64_t>;

// The message comes in parts, which are joined only where one is raised.
template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) throw std::runtime_error((std::string("fusednn: ") + ... + parts));
}

// torch's number of a dtype, without the conversions of Tensor::scalar_type(), which cost more than a small kernel.
int32_t type_number(const Tensor& tensor) {
  int32_t type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &type));
  return type;
}

int32_t type_number(Dtype dtype) {
  static const int32_t numbers[] = {aoti_torch_dtype_float64(), aoti_torch_dtype_float32(), aoti_torch_dtype_bfloat16(),
                                    aoti_torch_dtype_float16()};
  return numbers[static_cast<int>(dtype)];
}

Dtype dtype_of(const Tensor& tensor) {
  const int32_t type = type_number(tensor);
  for (Dtype dtype : {Dtype::kFloat64, Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat16}) {
    if (type == type_number(dtype)) return dtype;
  }
  throw std::runtime_error("fusednn: expected float64, float32, bfloat16 or float16");
}

std::string text(const std::vector<int64_t>& sizes) {
  std::string out = "[";
  for (size_t i = 0; i < sizes.size(); ++i) out += (i == 0 ? "" : ", ") + std::to_string(sizes[i]);
  return out + "]";
}

struct Device {
  int32_t type;
  int32_t index;

  bool cpu() const { return type == aoti_torch_device_type_cpu(); }
  bool operator==(const Device& other) const { return type == other.type && index == other.index; }
};

Device device_of(const Tensor& tensor) {
  Device device;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &device.type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &device.index));
  return device;
}

// Absent from a CPU build of torch, so looked up when it runs.
void* current_stream(const Device& device) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const auto get = reinterpret_cast<Get>(dlsym(RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"));
  require(get != nullptr, "this build of torch has no CUDA streams");
  void* stream;
  STABLE_TORCH_ERROR_CODE_CHECK(get(device.index, &stream));
  return stream;
}

Tensor empty(const Device& device, int32_t type, SizeList sizes) {
  std::array<int64_t, 3> strides;  // of as many dimensions as there are at most
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0; stride *= std::max<int64_t>(sizes.begin()[i], 1)) strides[i] = stride;
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(),
                                                         strides.data(), type, device.type, device.index, &handle));
  return Tensor(handle);
}

Tensor empty(const Tensor& like, SizeList sizes) {
  return empty(device_of(like), type_number(like), sizes);
}

// The arguments of a call, contiguous and alive until it ends.
class Inputs {
 public:
  explicit Inputs(const Tensor& like) : type_(type_number(like)), device_(device_of(like)) {}

  const void* get(const char* name, const Tensor& tensor, SizeList sizes) {
    return get(name, tensor, sizes.begin(), sizes.end());
  }

  const void* get(const char* name, const OptionalTensor& tensor, SizeList sizes) {
    return tensor.has_value() ? get(name, *tensor, sizes) : nullptr;
  }

  // A weight [D, ...], which may come without D where it is 1.
  const void* weight(const char* name, const OptionalTensor& tensor, SizeList sizes) {
    if (!tensor.has_value()) return nullptr;
    const bool one = *sizes.begin() == 1 && tensor->dim() + 1 == static_cast<int64_t>(sizes.size());
    return get(name, *tensor, sizes.begin() + one, sizes.end());
  }

  const int64_t* numbers(const char* name, const Tensor& tensor, int64_t count) {
    if (!(device_of(tensor) == device_)) fail(name, " is on another device than the other tensors");
    if (type_number(tensor) != aoti_torch_dtype_int64() || !tensor.is_contiguous() || tensor.numel() != count) {
      fail(name, " must be [" + std::to_string(count) + "] int64, contiguous");
    }
    return static_cast<const int64_t*>(tensor.const_data_ptr());
  }

 private:
  const void* get(const char* name, const Tensor& tensor, const int64_t* size, const int64_t* end) {
    if (!(device_of(tensor) == device_)) fail(name, " is on another device than the other tensors");
    if (type_number(tensor) != type_) fail(name, " differs in dtype from the other tensors");
    const auto got = tensor.sizes();
    if (!std::equal(got.begin(), got.end(), size, end)) {
      fail(name, ": expected size " + text({size, end}) + ", got " + text({got.begin(), got.end()}));
    }
    if (tensor.is_contiguous()) return tensor.const_data_ptr();
    kept_.push_back(torch::stable::contiguous(tensor));
    return kept_.back().const_data_ptr();
  }

  [[noreturn]] static void fail(const char* name, const std::string& what) {
    throw std::runtime_error(std::string("fusednn: ") + name + what);
  }

  int32_t type_;
  Device device_;
  std::vector<Tensor> kept_;
};

const CellInfo& info(const std::string& cell) {
  const CellInfo* found = find_cell(cell.c_str());
  require(found != nullptr, "unknown cell '", cell, "'");
  return *found;
}

thread_local Device gemm_device;  // of the call that runs

// A view of memory that outlives it.
Tensor matrix(const void* data, const int64_t (&sizes)[2], const int64_t (&strides)[2], Dtype dtype) {
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
      const_cast<void*>(data), 2, sizes, strides, 0, type_number(dtype), gemm_device.type, gemm_device.index, &handle));
  return Tensor(handle);
}

// The library GEMM of torch, on the current stream of the call's device.
void gemm(const Gemm& g) {
  const Tensor a = matrix(g.a, {g.m, g.k}, {g.lda, 1}, g.dtype);
  const Tensor b =
      g.transpose_b ? matrix(g.b, {g.k, g.n}, {1, g.ldb}, g.dtype) : matrix(g.b, {g.k, g.n}, {g.ldb, 1}, g.dtype);
  const Tensor c = matrix(g.c, {g.m, g.n}, {g.ldc, 1}, g.dtype);
  StableIValue stack[] = {torch::stable::detail::from(a), torch::stable::detail::from(b),
                          torch::stable::detail::from(c)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack, TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes back the reference
}

// "step+tf32" is the strategy "step", and so for the persistent ones, with fp32 products that may round their factors
// to TF32.
constexpr const char* kTf32 = "+tf32";

// A call: which kernels run, on what. Lives as long as the arguments that point into it.
struct Call {
  Call(const Tensor& like, std::string asked) : device(device_of(like)), strategy(std::move(asked)) {
    const size_t at = strategy.find(kTf32);
    allow_tf32 = at != std::string::npos;
    if (allow_tf32) strategy.resize(at);
    if (!device.cpu()) {
      provider = loaded_provider("cuda");
      require(provider != nullptr, "the library of CUDA kernels is not loaded");
      guard.emplace(device.index);
      stream = current_stream(device);
    } else if (strategy == "sequence") {
      provider = &cpu_provider();
    } else {
      provider = loaded_provider("emulated");
      require(provider != nullptr, "strategy '", strategy, "' runs on CPU tensors only with FUSEDNN_EMULATE=1");
    }
    gemm_device = device;
  }

  // Runs it, with the workspace that it asks for.
  template <class Args>
  void run(Args& args, const char* (*kernels)(const Args&), size_t (*workspace)(const Args&)) const {
    constexpr int64_t kAlign = 256;
    std::optional<Tensor> space;
    args.shape.strategy = strategy.c_str();
    args.shape.allow_tf32 = allow_tf32;
    args.shape.stream = stream;
    if (workspace != nullptr) {
      space = empty(device, aoti_torch_dtype_uint8(), {static_cast<int64_t>(workspace(args)) + kAlign});
      const auto start = reinterpret_cast<uintptr_t>(space->mutable_data_ptr());
      args.shape.workspace = reinterpret_cast<void*>((start + kAlign - 1) / kAlign * kAlign);
    }
    const char* error = kernels(args);
    require(error == nullptr, error == nullptr ? "" : error);
  }

  Device device;
  std::string strategy;
  bool allow_tf32;
  const Provider* provider;
  std::optional<torch::stable::accelerator::DeviceGuard> guard;
  void* stream = nullptr;
};

// The options of a call, in the order of the schemas.
struct Asked {
  int64_t heads;
  const OptionalTensor &mask, &seed;
  double zoneout_h, zoneout_c;
  int64_t first;
  const OptionalTensor& norm;

  bool zones() const { return zoneout_h > 0 || zoneout_c > 0; }

  void put(RecurrentShape& s, Inputs& in) const {
    s.options.mask = in.get("mask", mask, {s.tracks(), s.batch, s.proj});
    s.options.norm = in.weight("norm", norm, {s.tracks(), info(s.cell).gates * s.hidden});
    s.options.zoneout_h = zoneout_h, s.options.zoneout_c = zoneout_c, s.options.first = first;
    if (zones() && seed.has_value()) s.options.seed = in.numbers("seed", *seed, s.directions);
  }
};

const Tensor& two_or_three_dims(const Tensor& w_hh) {
  require(w_hh.dim() == 3 || w_hh.dim() == 2, "w_hh must be [D, G*H, P], or [G*H, P]");
  return w_hh;
}

// Of h0.
struct States {
  int64_t tracks, batch, proj;

  explicit States(const Tensor& h0) {
    require(h0.dim() == 3, "h0 [D, B, P] must have 3 dimensions");
    tracks = h0.size(0), batch = h0.size(1), proj = h0.size(2);
  }

  // That there would be for x [T, B, I].
  States(const Tensor& x, const Tensor& w_hh) {
    require(x.dim() == 3 && x.numel() > 0, "x must be [T, B, I] and not empty where there is no h0");
    tracks = two_or_three_dims(w_hh).dim() == 3 ? w_hh.size(0) : 1, batch = x.size(1), proj = w_hh.size(w_hh.dim() - 1);
  }
};

// Sizes of a call from those tensors that hold them all; `like` has their dtype.
RecurrentShape shape_of(const std::string& cell, int64_t rows, const Tensor& like, const States& states,
                        const Tensor& w_hh, const OptionalTensor& batch_sizes, int64_t heads) {
  RecurrentShape s{};
  s.cell = cell.c_str();
  s.dtype = dtype_of(like);
  require(heads > 0 && states.tracks % heads == 0, "heads must divide D");
  s.heads = heads, s.layers = 1, s.directions = states.tracks / heads;
  s.batch = states.batch, s.proj = states.proj;
  s.rows = rows;
  s.hidden = two_or_three_dims(w_hh).size(w_hh.dim() - 2) / info(cell).gates;
  s.threads = static_cast<int>(torch::stable::get_num_threads());
  s.gemm = gemm;
  if (!batch_sizes.has_value()) {
    s.steps = s.batch == 0 ? 0 : rows / s.batch;
    require(s.steps * s.batch == rows, "the number of rows must be a multiple of the batch size");
    return s;
  }
  require(
      batch_sizes->is_cpu() && batch_sizes->is_contiguous() && type_number(*batch_sizes) == aoti_torch_dtype_int64(),
      "batch_sizes must be a contiguous int64 tensor on the CPU");
  s.steps = batch_sizes->numel();
  s.batch_sizes = static_cast<const int64_t*>(batch_sizes->const_data_ptr());
  int64_t sum = 0;
  for (int64_t t = 0, last = s.batch; t < s.steps; last = s.batch_sizes[t++]) {
    require(s.batch_sizes[t] >= 0 && s.batch_sizes[t] <= last,
            "batch_sizes must not increase, nor exceed the batch size of h0");
    sum += s.batch_sizes[t];
  }
  require(sum == rows, "batch_sizes must add up to the number of rows");
  return s;
}

Tensor empty_if(bool wanted, const Tensor& like, SizeList sizes) {
  return wanted ? empty(like, sizes) : empty(like, {0});
}

void* data_if(bool wanted, const Tensor& tensor) {
  return wanted ? tensor.mutable_data_ptr() : nullptr;
}

// x W^T + b for all steps and both directions: [N, D*G*H] from w [D, G*H, I] and b [D, G*H].
Tensor input_product(const Tensor& x, const Tensor& w, const OptionalTensor& b) {
  OptionalTensor bias;
  if (b.has_value()) bias = torch::stable::flatten(*b, 0, -1);
  StableIValue stack[] = {torch::stable::detail::from(x), torch::stable::detail::from(torch::stable::flatten(w, 0, -2)),
                          torch::stable::detail::from(bias)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// y, h_n, c_n, and where they are wanted saved and states. y has the dimensions of x, [N, I] or [T, B, I]. Without h0
// and c0: from zeros.
std::tuple<Tensor, Tensor, Tensor, OptionalTensor, OptionalTensor> sequence(
    const Tensor& x, const OptionalTensor& h0, const OptionalTensor& c0, const OptionalTensor& w_ih, const Tensor& w_hh,
    const OptionalTensor& b_ih, const OptionalTensor& b_hh, const OptionalTensor& w_hr,
    const OptionalTensor& batch_sizes, const std::string& cell, const std::string& strategy, bool save,
    const Asked& asked, bool recompute) {
  require(x.dim() == 2 || x.dim() == 3, "x must be [N, I], or [T, B, I]");
  const bool rows = x.dim() == 2;
  RecurrentForward args{};
  const Call call(x, strategy);
  args.shape = shape_of(cell, rows ? x.size(0) : x.size(0) * x.size(1), x,
                        h0.has_value() ? States(*h0) : States(x, w_hh), w_hh, batch_sizes, asked.heads);
  RecurrentShape& s = args.shape;
  const CellInfo& c = info(cell);
  require(c0.has_value() == (c.cell_state && h0.has_value()),
          "c0 must be given for cells with a cell state, and for no other");
  const int64_t width = c.gates * s.hidden, D = s.tracks();
  s.inputs = x.size(rows ? 1 : 2);
  const int64_t x_width = w_ih.has_value() ? s.inputs : D * width;

  Inputs in(x);
  args.x = rows ? in.get("x", x, {s.rows, x_width}) : in.get("x", x, {s.steps, s.batch, x_width});
  args.w_ih = in.weight("w_ih", w_ih, {D, width, s.inputs});
  args.b_ih = in.weight("b_ih", b_ih, {D, width});
  args.h0 = in.get("h0", h0, {D, s.batch, s.proj});
  args.c0 = in.get("c0", c0, {D, s.batch, s.hidden});
  args.w_hh = in.weight("w_hh", w_hh, {D, width, s.proj});
  args.b_hh = in.weight("b_hh", b_hh, {D, width});
  args.w_hr = in.weight("w_hr", w_hr, {D, s.proj, s.hidden});
  asked.put(s, in);
  OptionalTensor gates;
  if (!w_ih.has_value()) {
    args.gates = args.x;
  } else if (call.provider != &cpu_provider() || s.steps == 1) {
    gates = input_product(x, *w_ih, b_ih);
    args.gates = gates->const_data_ptr();
  }

  Tensor y = rows ? empty(x, {s.rows, D * s.proj}) : empty(x, {s.steps, s.batch, D * s.proj});
  Tensor h_n = empty(x, {D, s.batch, s.proj});
  Tensor c_n = empty_if(c.cell_state, x, {D, s.batch, s.hidden});
  OptionalTensor saved, states;
  if (save && !recompute && c.saved > 0) saved = empty(x, {s.rows, D * c.saved * s.hidden});
  if (save && (recompute ? c.cell_state : asked.zones())) states = empty(x, {s.rows, D * s.hidden});
  args.y = y.mutable_data_ptr();
  args.h_n = h_n.mutable_data_ptr();
  args.c_n = data_if(c.cell_state, c_n);
  if (saved.has_value()) args.saved = saved->mutable_data_ptr();
  if (states.has_value()) args.states = states->mutable_data_ptr();
  call.run(args, call.provider->forward, call.provider->forward_workspace);
  return {std::move(y), std::move(h_n), std::move(c_n), std::move(saved), std::move(states)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& x, const Tensor& h0, const OptionalTensor& c0, const OptionalTensor& w_ih, const Tensor& w_hh,
    const OptionalTensor& b_ih, const OptionalTensor& b_hh, const OptionalTensor& w_hr,
    const OptionalTensor& batch_sizes, const std::string& cell, const std::string& strategy, bool save, int64_t heads,
    const OptionalTensor& mask, const OptionalTensor& seed, double zoneout_h, double zoneout_c, int64_t first,
    const OptionalTensor& norm, bool recompute) {
  auto [y, h_n, c_n, saved, states] = sequence(x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, cell, strategy,
                                               save, {heads, mask, seed, zoneout_h, zoneout_c, first, norm}, recompute);
  if (!saved.has_value()) saved = empty(h0, {0});
  if (!states.has_value()) states = empty(h0, {0});
  return {std::move(y), std::move(h_n), std::move(c_n), *std::move(saved), *std::move(states)};
}

std::tuple<Tensor, Tensor, Tensor> inference(const Tensor& x, const Tensor& h0, const OptionalTensor& c0,
                                             const OptionalTensor& w_ih, const Tensor& w_hh, const OptionalTensor& b_ih,
                                             const OptionalTensor& b_hh, const OptionalTensor& w_hr,
                                             const OptionalTensor& batch_sizes, const std::string& cell,
                                             const std::string& strategy, int64_t heads, const OptionalTensor& mask,
                                             const OptionalTensor& seed, double zoneout_h, double zoneout_c,
                                             int64_t first, const OptionalTensor& norm, bool recompute) {
  auto [y, h_n, c_n, saved, states] =
      sequence(x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, cell, strategy, false,
               {heads, mask, seed, zoneout_h, zoneout_c, first, norm}, recompute);
  return {std::move(y), std::move(h_n), std::move(c_n)};
}

// y [T, B, D*P] of x [T, B, I], by "sequence".
std::tuple<Tensor, Tensor, Tensor> from_zeros(const Tensor& x, const Tensor& w_ih, const Tensor& w_hh,
                                              const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                                              const OptionalTensor& w_hr, const std::string& cell) {
  const OptionalTensor none;
  auto [y, h_n, c_n, saved, states] = sequence(x, none, none, w_ih, w_hh, b_ih, b_hh, w_hr, none, cell, "sequence",
                                               false, {1, none, none, 0, 0, 0, none}, false);
  return {std::move(y), std::move(h_n), std::move(c_n)};
}

// Layers that walk together: `weights` holds w_ih and w_hh of each, and b_ih and b_hh where there are biases.
std::tuple<Tensor, Tensor, Tensor, Tensor> layers(Tensor x, Tensor h0, OptionalTensor c0, std::vector<Tensor> weights,
                                                  OptionalTensor batch_sizes, std::string cell, std::string strategy,
                                                  bool save) {
  require(x.dim() == 2 && h0.dim() == 3, "x [N, I] must have 2 dimensions and h0 [L, B, H] 3");
  const size_t L = static_cast<size_t>(h0.size(0)), each = L == 0 ? 0 : weights.size() / L;
  require((each == 2 || each == 4) && each * L == weights.size(), "weights must be 2 of each layer, or 4 with biases");
  const auto weight = [&](size_t layer, size_t which) -> OptionalTensor {
    return which < each ? OptionalTensor(weights[layer * each + which]) : std::nullopt;
  };
  RecurrentForward args{};
  const Call call(h0, std::move(strategy));
  require(call.provider != &cpu_provider(), "layers walk together on the CUDA kernels");
  args.shape = shape_of(cell, x.size(0), h0, States(h0), *weight(0, 1), batch_sizes, 1);
  RecurrentShape& s = args.shape;
  s.layers = static_cast<int>(s.directions), s.directions = 1;
  const CellInfo& c = info(cell);
  require(c0.has_value() == c.cell_state, "c0 must be given for cells with a cell state, and for no other");
  const int64_t width = c.gates * s.hidden;

  Inputs in(h0);
  in.get("x", x, {s.rows, x.size(1)});
  in.weight("w_ih", weight(0, 0), {1, width, x.size(1)});
  in.weight("b_ih", weight(0, 2), {1, width});
  args.h0 = in.get("h0", h0, {s.layers, s.batch, s.hidden});
  args.c0 = in.get("c0", c0, {s.layers, s.batch, s.hidden});
  args.w_hh = in.weight("w_hh", weight(0, 1), {1, width, s.hidden});
  args.b_hh = in.weight("b_hh", weight(0, 3), {1, width});
  std::vector<LayerWeights> above;
  for (size_t l = 1; l < L; ++l) {
    above.push_back({in.weight("w_ih", weight(l, 0), {1, width, s.hidden}),
                     in.weight("w_hh", weight(l, 1), {1, width, s.hidden}), in.weight("b_ih", weight(l, 2), {1, width}),
                     in.weight("b_hh", weight(l, 3), {1, width})});
  }
  args.above = above.data();
  const Tensor gates = input_product(x, *weight(0, 0), weight(0, 2));
  args.gates = gates.const_data_ptr();

  Tensor y = save ? empty(h0, {s.layers, s.rows, s.hidden}) : empty(h0, {s.rows, s.hidden});
  Tensor h_n = empty(h0, {s.layers, s.batch, s.hidden});
  Tensor c_n = empty_if(c.cell_state, h0, {s.layers, s.batch, s.hidden});
  Tensor saved = empty_if(save && c.saved > 0, h0, {s.layers, s.rows, c.saved * s.hidden});
  args.y = y.mutable_data_ptr(), args.last_y = !save;
  args.h_n = h_n.mutable_data_ptr();
  args.c_n = data_if(c.cell_state, c_n);
  args.saved = data_if(save && c.saved > 0, saved);
  call.run(args, call.provider->forward, call.provider->forward_workspace);
  return {y, h_n, c_n, saved};
}

std::tuple<Tensor, Tensor, Tensor> layers_inference(Tensor x, Tensor h0, OptionalTensor c0, std::vector<Tensor> weights,
                                                    OptionalTensor batch_sizes, std::string cell,
                                                    std::string strategy) {
  auto [y, h_n, c_n, saved] = layers(x, h0, c0, weights, batch_sizes, std::move(cell), std::move(strategy), false);
  return {y, h_n, c_n};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    OptionalTensor grad_y, OptionalTensor grad_h_n, OptionalTensor grad_c_n, Tensor y, Tensor saved,
    OptionalTensor states, OptionalTensor normed, OptionalTensor rstd, Tensor h0, OptionalTensor c0, Tensor w_hh,
    OptionalTensor b_hh, OptionalTensor w_hr, OptionalTensor batch_sizes, std::string cell, std::string strategy,
    int64_t heads, OptionalTensor mask, OptionalTensor seed, double zoneout_h, double zoneout_c, int64_t first,
    OptionalTensor norm) {
  (void)b_hh;  // in the schema so that both operators take the same weights; backward does not need its value
  require(y.dim() == 2, "y [N, D*P] must have 2 dimensions");
  RecurrentBackward args{};
  const Call call(h0, std::move(strategy));
  args.shape = shape_of(cell, y.size(0), h0, States(h0), w_hh, batch_sizes, heads);
  const RecurrentShape& s = args.shape;
  const CellInfo& c = info(cell);
  const Asked asked{heads, mask, seed, zoneout_h, zoneout_c, first, norm};
  require(asked.zones() == states.has_value(), "states must be given with zoneout, and never else");
  require(norm.has_value() == normed.has_value() && norm.has_value() == rstd.has_value(),
          "normed and rstd must be given with layer norm, and never else");
  require(c0.has_value() == c.cell_state, "c0 must be given for cells with a cell state, and for no other");
  const int64_t width = c.gates * s.hidden, D = s.tracks();

  Inputs in(h0);
  args.grad_y = in.get("grad_y", grad_y, {s.rows, D * s.proj});
  args.grad_h_n = in.get("grad_h_n", grad_h_n, {D, s.batch, s.proj});
  if (c.cell_state) args.grad_c_n = in.get("grad_c_n", grad_c_n, {D, s.batch, s.hidden});
  args.y = in.get("y", y, {s.rows, D * s.proj});
  if (c.saved > 0) args.saved = in.get("saved", saved, {s.rows, D * c.saved * s.hidden});
  args.states = in.get("states", states, {s.rows, D * s.hidden});
  args.normed = in.get("normed", normed, {s.rows, D * width});
  args.rstd = in.get("rstd", rstd, {s.rows, D * (c.second_gates > 0 ? 2 : 1)});
  args.h0 = in.get("h0", h0, {D, s.batch, s.proj});
  args.c0 = in.get("c0", c0, {D, s.batch, s.hidden});
  args.w_hh = in.weight("w_hh", w_hh, {D, width, s.proj});
  args.w_hr = in.weight("w_hr", w_hr, {D, s.proj, s.hidden});
  asked.put(args.shape, in);

  Tensor d_gates = empty(h0, {s.rows, D * width});
  Tensor d_recurrent = empty_if(c.split, h0, {s.rows, D * width});
  Tensor d_h0 = empty(h0, {D, s.batch, s.proj});
  Tensor d_c0 = empty_if(c.cell_state, h0, {D, s.batch, s.hidden});
  Tensor d_proj = empty_if(w_hr.has_value(), h0, {s.rows, D * s.proj});
  Tensor d_products = empty_if(norm.has_value(), h0, {s.rows, D * width});
  args.d_products = data_if(norm.has_value(), d_products);
  args.d_gates = d_gates.mutable_data_ptr();
  args.d_recurrent = data_if(c.split, d_recurrent);
  args.d_h0 = d_h0.mutable_data_ptr();
  args.d_c0 = data_if(c.cell_state, d_c0);
  args.d_proj = data_if(w_hr.has_value(), d_proj);
  call.run(args, call.provider->backward, call.provider->backward_workspace);
  return {d_gates, d_recurrent, d_h0, d_c0, d_proj, d_products};
}

ScanShape scan_shape(const std::string& cell, const Tensor& gates) {
  const int64_t count = scan_gates(cell.c_str());
  require(count > 0, "unknown cell '", cell, "'");
  require(gates.dim() == 3, "gates [T, B, G*H] must have 3 dimensions");
  return {cell.c_str(),  dtype_of(gates),       gates.size(1),
          gates.size(0), gates.size(2) / count, static_cast<int>(torch::stable::get_num_threads())};
}

Tensor scan(Tensor gates, Tensor h0, std::string cell) {
  ScanForward args{};
  args.shape = scan_shape(cell, gates);
  const ScanShape& s = args.shape;
  Inputs in(gates);
  args.gates = in.get("gates", gates, {s.steps, s.batch, scan_gates(s.cell) * s.hidden});
  args.h0 = in.get("h0", h0, {s.batch, s.hidden});
  Tensor y = empty(gates, {s.steps, s.batch, s.hidden});
  args.y = y.mutable_data_ptr();
  const char* error = scan_forward(args);
  require(error == nullptr, error == nullptr ? "" : error);
  return y;
}

std::tuple<Tensor, Tensor> scan_gradients(Tensor grad_y, Tensor gates, Tensor y, Tensor h0, std::string cell) {
  ScanBackward args{};
  args.shape = scan_shape(cell, gates);
  const ScanShape& s = args.shape;
  Inputs in(gates);
  args.grad_y = in.get("grad_y", grad_y, {s.steps, s.batch, s.hidden});
  args.gates = in.get("gates", gates, {s.steps, s.batch, scan_gates(s.cell) * s.hidden});
  args.y = in.get("y", y, {s.steps, s.batch, s.hidden});
  args.h0 = in.get("h0", h0, {s.batch, s.hidden});
  Tensor d_gates = empty(gates, {s.steps, s.batch, scan_gates(s.cell) * s.hidden});
  Tensor d_h0 = empty(gates, {s.batch, s.hidden});
  args.d_gates = d_gates.mutable_data_ptr(), args.d_h0 = d_h0.mutable_data_ptr();
  const char* error = scan_backward(args);
  require(error == nullptr, error == nullptr ? "" : error);
  return {d_gates, d_h0};
}

AdditiveShape additive_shape(const Tensor& query, const Tensor& key) {
  require(query.dim() == 3 && key.dim() == 3, "query [B, M, H] and key [B, K, H] must have 3 dimensions");
  return {dtype_of(query), query.size(0), query.size(1),
          key.size(1),     query.size(2), static_cast<int>(torch::stable::get_num_threads())};
}

// In the type that scores have: fp32, for fp64 fp64.
Tensor empty_scores(const Tensor& like, const AdditiveShape& s) {
  const Dtype wide = s.dtype == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32;
  return empty(device_of(like), type_number(wide), {s.batch, s.queries, s.keys});
}

Tensor additive_scores(Tensor query, Tensor key, Tensor weight) {
  AdditiveForward args{};
  args.shape = additive_shape(query, key);
  const AdditiveShape& s = args.shape;
  Inputs in(query);
  args.query = in.get("query", query, {s.batch, s.queries, s.hidden});
  args.key = in.get("key", key, {s.batch, s.keys, s.hidden});
  args.weight = in.get("weight", weight, {s.hidden});
  Tensor scores = empty_scores(query, s);
  args.scores = scores.mutable_data_ptr();
  const char* error = additive_forward(args);
  require(error == nullptr, error == nullptr ? "" : error);
  return scores;
}

std::tuple<Tensor, Tensor, Tensor> additive_gradients(Tensor grad, Tensor query, Tensor key, Tensor weight) {
  AdditiveBackward args{};
  args.shape = additive_shape(query, key);
  const AdditiveShape& s = args.shape;
  Inputs in(query), wide(empty_scores(query, s));
  args.grad = wide.get("grad", grad, {s.batch, s.queries, s.keys});
  args.query = in.get("query", query, {s.batch, s.queries, s.hidden});
  args.key = in.get("key", key, {s.batch, s.keys, s.hidden});
  args.weight = in.get("weight", weight, {s.hidden});
  Tensor d_query = empty(query, {s.batch, s.queries, s.hidden}), d_key = empty(query, {s.batch, s.keys, s.hidden});
  Tensor d_weight = empty(query, {s.hidden});
  args.d_query = d_query.mutable_data_ptr(), args.d_key = d_key.mutable_data_ptr();
  args.d_weight = d_weight.mutable_data_ptr();
  const char* error = additive_backward(args);
  require(error == nullptr, error == nullptr ? "" : error);
  return {d_query, d_key, d_weight};
}

// Gradients of y = x W^T + b: of the W of each x, of b, and with w of x.
std::tuple<std::vector<Tensor>, Tensor, Tensor> linear_gradients(Tensor d_y, std::vector<Tensor> x, OptionalTensor w,
                                                                 bool bias) {
  LinearBackward args{};
  require(d_y.dim() == 2 && (d_y.numel() == 0 || d_y.size(1) == 1 || d_y.stride(1) == 1),
          "d_y must be [N, M] with contiguous rows");
  require(x.size() <= 2 && (!w.has_value() || w->dim() == 2), "expected at most two x, and w [M, K]");
  args.dtype = dtype_of(d_y);
  args.rows = d_y.size(0), args.outputs = d_y.size(1);
  args.d_y = d_y.const_data_ptr(), args.d_y_row = d_y.stride(0);
  args.threads = static_cast<int>(torch::stable::get_num_threads());
  Inputs in(d_y);
  std::vector<Tensor> d_w;
  for (size_t i = 0; i < x.size(); ++i) {
    require(x[i].dim() == 2, "x must be [N, K]");
    const int64_t size = x[i].size(1);
    d_w.push_back(empty(d_y, {args.outputs, size}));
    args.inputs[i] = {size, in.get("x", x[i], {args.rows, size}), d_w[i].mutable_data_ptr()};
  }
  args.w_size = w.has_value() ? w->size(1) : 0;
  args.w = in.get("w", w, {args.outputs, args.w_size});
  Tensor d_x = w.has_value() ? empty(d_y, {args.rows, args.w_size}) : empty(d_y, {0});
  Tensor d_b = empty_if(bias, d_y, {args.outputs});
  args.d_x = data_if(w.has_value(), d_x), args.d_b = data_if(bias, d_b);
  const char* error = linear_backward(args);
  require(error == nullptr, error == nullptr ? "" : error);
  return {d_w, d_b, d_x};
}

Tensor attention_keep(Tensor seed, double probability, Tensor heads, int64_t first_query, int64_t end_query,
                      int64_t first_key, int64_t end_key) {
  DropoutKeep args{};
  Inputs in(heads);
  args.seed = *static_cast<const int64_t*>(in.get("seed", seed, {1}));
  require(type_number(heads) == aoti_torch_dtype_int64() && heads.dim() == 1, "heads must be [count] int64");
  args.count = heads.size(0);
  args.heads = static_cast<const int64_t*>(in.get("heads", heads, {args.count}));
  require(first_query <= end_query && first_key <= end_key, "queries and keys must be ranges");
  args.limit = cpu::dropout_limit(probability);
  args.first_query = first_query, args.end_query = end_query, args.first_key = first_key, args.end_key = end_key;
  args.threads = static_cast<int>(torch::stable::get_num_threads());
  const int64_t queries = end_query - first_query, keys = end_key - first_key;
  Tensor keep = empty(Device{aoti_torch_device_type_cpu(), 0}, aoti_torch_dtype_bool(), {args.count, queries, keys});
  args.keep = static_cast<bool*>(keep.mutable_data_ptr());
  if (args.count * queries * keys > 0) dropout_keep(args);
  return keep;
}

// Attention. What both directions are given, in the order of the schemas, and the struct made of it.
struct AttentionCall {
  const Tensor &query, &key, &value;
  const OptionalTensor &mask, &slopes, &sink, &starts_q, &starts_k, &seed;

  bool packed() const { return starts_q.has_value(); }

  AttentionShape shape(double scale, double softcap, int64_t left, int64_t right, bool bottom_right, double dropout_p,
                       int64_t rows) const {
    require(query.dim() == 4 && key.dim() == 4 && value.dim() == 4, "query, key and value must have 4 dimensions");
    AttentionShape s{};
    s.dtype = dtype_of(query);
    s.batch = query.size(0), s.heads = query.size(1), s.queries = query.size(2), s.size = query.size(3);
    s.key_heads = key.size(1), s.keys = key.size(2), s.value_size = value.size(3), s.sequences = s.batch;
    require(s.heads == 0 || (s.key_heads > 0 && s.heads % s.key_heads == 0), "key heads must divide the query's");
    if (packed()) {
      require(starts_k.has_value() && starts_q->dim() == 1 && starts_q->size(0) > 0 && s.batch == 1,
              "sequences need a batch of one, starts_q and starts_k [S + 1]");
      s.sequences = starts_q->size(0) - 1;
      s.starts_q = starts("starts_q", *starts_q, s.sequences, s.queries);
      s.starts_k = starts("starts_k", *starts_k, s.sequences, s.keys);
    }
    s.scale = scale, s.softcap = softcap, s.left = left, s.right = right, s.bottom_right = bottom_right;
    s.dropout_p = dropout_p, s.rows = rows;
    require(dropout_p == 0 || seed.has_value(), "dropout needs a seed");
    if (seed.has_value()) s.seed = *static_cast<const int64_t*>(whole("seed", *seed, aoti_torch_dtype_int64(), {1}));
    s.threads = static_cast<int>(torch::stable::get_num_threads());
    return s;
  }

  AttentionInputs inputs(const AttentionShape& s) const {
    AttentionInputs in{};
    in.query = heads("query", query, s, s.heads, s.queries, s.size);
    in.key = heads("key", key, s, s.key_heads, s.keys, s.size);
    in.value = heads("value", value, s, s.key_heads, s.keys, s.value_size);
    if (mask.has_value()) {
      const std::vector<int64_t> sizes{s.batch, s.heads, s.queries, s.keys};
      check_sizes("mask", *mask, sizes);
      require(!packed(), "sequences take no mask");
      const bool boolean = type_number(*mask) == aoti_torch_dtype_bool();
      require(boolean || type_number(*mask) == wide(s), "mask must be bool or of the wide dtype");
      if (boolean) in.seen = static_cast<const bool*>(mask->const_data_ptr());
      if (!boolean) in.bias = mask->const_data_ptr();
      for (int i = 0; i < 4; ++i) in.mask_strides[i] = mask->stride(i);
    }
    if (slopes.has_value()) in.slopes = whole("slopes", *slopes, wide(s), {s.sequences, s.heads});
    if (sink.has_value()) in.sink = whole("sink", *sink, wide(s), {s.heads});
    return in;
  }

  static int32_t wide(const AttentionShape& s) {
    return type_number(s.dtype == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32);
  }

  static void check_sizes(const char* name, const Tensor& x, const std::vector<int64_t>& sizes) {
    const auto got = x.sizes();
    require(std::equal(got.begin(), got.end(), sizes.begin(), sizes.end()),
            std::string(name) + ": expected size " + text(sizes) + ", got " + text({got.begin(), got.end()}));
  }

  // A contiguous tensor.
  static const void* whole(const char* name, const Tensor& x, int32_t type, const std::vector<int64_t>& sizes) {
    check_sizes(name, x, sizes);
    require(type_number(x) == type && x.is_contiguous(), std::string(name) + " must be contiguous and of its dtype");
    return x.const_data_ptr();
  }

  static Heads heads(const char* name, const Tensor& x, const AttentionShape& s, int64_t count, int64_t rows,
                     int64_t size) {
    check_sizes(name, x, {s.batch, count, rows, size});
    require(type_number(x) == type_number(s.dtype) && (size < 2 || x.numel() == 0 || x.stride(3) == 1),
            std::string(name) + " must have the query's dtype, and a contiguous last dimension");
    return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
  }

  // One with elements, or null.
  static Heads heads_if(const char* name, const OptionalTensor& x, const AttentionShape& s, int64_t count, int64_t rows,
                        int64_t size) {
    return x.has_value() ? heads(name, *x, s, count, rows, size) : Heads{};
  }

 private:
  static const int32_t* starts(const char* name, const Tensor& x, int64_t sequences, int64_t rows) {
    const auto* at = static_cast<const int32_t*>(whole(name, x, aoti_torch_dtype_int32(), {sequences + 1}));
    require(at[0] >= 0 && at[sequences] <= rows && std::is_sorted(at, at + sequences + 1),
            std::string(name) + " must ascend within the rows");
    return at;
  }
};

void attention_cpu_forward(Tensor out, Tensor lse, Tensor query, Tensor key, Tensor value, OptionalTensor mask,
                           OptionalTensor slopes, OptionalTensor sink, OptionalTensor starts_q, OptionalTensor starts_k,
                           OptionalTensor seed, double scale, double softcap, int64_t left, int64_t right,
                           bool bottom_right, double dropout_p, int64_t rows) {
  const AttentionCall call{query, key, value, mask, slopes, sink, starts_q, starts_k, seed};
  AttentionForward args{};
  args.shape = call.shape(scale, softcap, left, right, bottom_right, dropout_p, rows);
  const AttentionShape& s = args.shape;
  args.in = call.inputs(s);
  args.out = call.heads("out", out, s, s.heads, s.queries, s.value_size);
  args.lse = const_cast<void*>(call.whole("lse", lse, call.wide(s), {s.batch, s.heads, s.queries}));
  const char* error = attention_forward(args);
  require(error == nullptr, error == nullptr ? "" : error);
}

void attention_cpu_backward(OptionalTensor d_query, OptionalTensor d_key, OptionalTensor d_value,
                            OptionalTensor d_slopes, OptionalTensor d_sink, Tensor grad_out, OptionalTensor grad_lse,
                            Tensor query, Tensor key, Tensor value, OptionalTensor mask, OptionalTensor slopes,
                            OptionalTensor sink, OptionalTensor starts_q, OptionalTensor starts_k, OptionalTensor seed,
                            double scale, double softcap, int64_t left, int64_t right, bool bottom_right,
                            double dropout_p, int64_t rows) {
  const AttentionCall call{query, key, value, mask, slopes, sink, starts_q, starts_k, seed};
  AttentionBackward args{};
  args.shape = call.shape(scale, softcap, left, right, bottom_right, dropout_p, rows);
  const AttentionShape& s = args.shape;
  const auto sums = [&](const char* name, const OptionalTensor& x, const std::vector<int64_t>& sizes) {
    return x.has_value() ? const_cast<void*>(call.whole(name, *x, call.wide(s), sizes)) : nullptr;
  };
  args.in = call.inputs(s);
  args.grad_out = call.heads("grad_out", grad_out, s, s.heads, s.queries, s.value_size);
  args.grad_lse = sums("grad_lse", grad_lse, {s.batch, s.heads, s.queries});
  args.d_query = call.heads_if("d_query", d_query, s, s.heads, s.queries, s.size);
  args.d_key = call.heads_if("d_key", d_key, s, s.key_heads, s.keys, s.size);
  args.d_value = call.heads_if("d_value", d_value, s, s.key_heads, s.keys, s.value_size);
  args.d_slopes = sums("d_slopes", d_slopes, {s.sequences, s.heads});
  args.d_sink = sums("d_sink", d_sink, {s.sequences, s.heads});
  const char* error = attention_backward(args);
  require(error == nullptr, error == nullptr ? "" : error);
}

void implement(torch::stable::detail::StableLibrary& m) {
  m.impl("recurrent", TORCH_BOX(&inference));
  m.impl("recurrent_forward", TORCH_BOX(&forward));
  m.impl("recurrent_backward", TORCH_BOX(&backward));
  m.impl("recurrent_layers", TORCH_BOX(&layers_inference));
  m.impl("recurrent_layers_forward", TORCH_BOX(&layers));
}

STABLE_TORCH_LIBRARY_IMPL(fusednn, CPU, m) {
  implement(m);
  m.impl("recurrent.from_zeros", TORCH_BOX(&from_zeros));
  m.impl("linear_gradients", TORCH_BOX(&linear_gradients));
  m.impl("scan", TORCH_BOX(&scan));
  m.impl("scan_backward", TORCH_BOX(&scan_gradients));
  m.impl("additive_scores", TORCH_BOX(&additive_scores));
  m.impl("additive_scores_backward", TORCH_BOX(&additive_gradients));
  m.impl("attention_keep", TORCH_BOX(&attention_keep));
  m.impl("attention_cpu_forward", TORCH_BOX(&attention_cpu_forward));
  m.impl("attention_cpu_backward", TORCH_BOX(&attention_cpu_backward));
}

}  // namespace

void register_cuda_operators() {
  using namespace torch::stable::detail;
  static const StableTorchLibraryInit once(StableLibrary::Kind::IMPL, &implement, "fusednn", "CUDA", __FILE__,
                                           __LINE__);
}

}  // namespace fusednn
