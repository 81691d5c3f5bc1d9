// The C++ API of the kernels, free of torch. A provider (cpu, cuda, emulated) is a table of functions over these
// structs.
//
// Providers: cpu (linked in), cuda and emulated (csrc/cuda, libraries of their own).
//
// Letters: B batch, T time, H hidden size, P size of h (H, or the projection's size), N rows in all: T * B padded and
// time-major, or the sum of batch_sizes. G gates and S saved values are the cell's. D tracks: recurrences that share
// their input and nothing else, first the heads of one direction and then those of the second, which runs in reverse
// time; H, P and the weights are those of one head. Every tensor is contiguous, in the dtype of the call; nothing may
// alias; every pointer is borrowed for the call. The provider writes each element of each output.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fusednn {

enum class Dtype : int { kFloat64, kFloat32, kBFloat16, kFloat16 };

// c[m, n] = a[m, k] b[k, n], or a b^T with b [n, k] where transpose_b. Row-major with the given distances between rows.
struct Gemm {
  const void* a;
  const void* b;
  void* c;
  int64_t m, n, k;
  int64_t lda, ldb, ldc;
  bool transpose_b;
  Dtype dtype;
};

// What a layer may ask for beside its cell; docs/kernels/recurrent_options.md defines each. Zero: nothing.
struct RecurrentOptions {
  const void* mask;  // [D, B, P] multiplies h (and what a second product takes) where W_hh does; or null
  // Zoneout: the probability that a unit keeps its h, or c, from the step before.
  double zoneout_h, zoneout_c;
  const int64_t* seed;  // one a direction: what is kept is drawn from it; null: the expectation
  // [D, G*H] the gain of layer norm over the gates of a product (the last gates of a second product apart), which b_hh
  // follows; or null.
  const void* norm;
  int64_t first;  // the number of the first step, which the draw depends on

  bool zones() const { return zoneout_h > 0 || zoneout_c > 0; }
};

inline constexpr double kNormEps = 1e-5;

struct RecurrentShape {
  const char* cell;  // a name of cells/registry.h
  Dtype dtype;
  int64_t batch, steps, rows, hidden, proj, directions;  // B, T, N, H, P, and 1 or 2
  int64_t inputs;                                        // I, where forward is given x
  const int64_t* batch_sizes;                            // [T] on the host, non-increasing; null: padded
  int threads;                                           // at most this many (cpu)
  int layers;                 // L: more than one walk together, in forward of "grid", with one direction and one head
  void (*gemm)(const Gemm&);  // a library GEMM; null: the provider does without (cpu), or cannot serve `gemm`
  // For providers of CUDA kernels; the cpu provider has one strategy and needs none of these.
  const char* strategy;  // "gemm", "step", "graph", "block", "cluster" or "grid"
  bool allow_tf32;       // fp32 products may round their factors to TF32
  void* stream;          // a cudaStream_t; all work is ordered by it, and nothing waits for it
  void* workspace;       // device memory of the size that the provider asked for, 256-byte aligned
  int64_t heads;         // of each direction
  RecurrentOptions options;

  int64_t tracks() const { return directions * heads; }  // D
};

// A layer above the first, whose input is y of the layer below.
struct LayerWeights {
  const void* w_ih;  // [G*H, H]
  const void* w_hh;  // [G*H, H]
  const void* b_ih;  // [G*H] or null
  const void* b_hh;  // [G*H] or null
};

// With L layers what follows is that of the first one as far as it is read, but for h0, c0, h_n and c_n, [L, B, H];
// y is [L, N, H] and saved [L, N, S*H].
struct RecurrentForward {
  RecurrentShape shape;
  const void* gates;  // [N, D*G*H] W_ih x + b_ih; null (cpu, T > 1): computed from the next three
  const void* x;      // [N, I]
  const void* w_ih;   // [D, G*H, I]
  const void* b_ih;   // [D, G*H] or null
  const void* h0;     // [D, B, P]; null (cpu), and c0 with it: zeros, which the first step does not multiply
  const void* c0;     // [D, B, H]; null where the cell has no c
  const void* w_hh;   // [D, G*H, P]
  const void* b_hh;   // [D, G*H] or null
  const void* w_hr;   // [D, P, H] or null
  void* y;            // [N, D*P]
  void* h_n;          // [D, B, P]
  void* c_n;          // [D, B, H]; null where the cell has no c
  void* saved;        // [N, D*S*H]; null: inference
  // [N, D*H] what backward needs beside saved, or instead of it where that is null: c_t, which zoneout makes differ
  // from the saved one; for a cell without c the h that zoneout came behind. Null: not wanted
  void* states;
  const LayerWeights* above;  // [L - 1] on the host
  bool last_y;                // with L layers: y is that of the last one alone, [N, H]
};

struct RecurrentBackward {
  RecurrentShape shape;
  const void* grad_y;    // [N, D*P] or null, which means zero; so too the next two
  const void* grad_h_n;  // [D, B, P]
  const void* grad_c_n;  // [D, B, H]
  const void* y;         // of forward, with saved, and forward's arguments
  const void* saved;
  const void* states;  // of forward, with zoneout; else null
  const void* normed;  // [N, D*G*H] with layer norm its results before the gain; else null, and so the next two
  const void* rstd;    // [N, D*products] and 1 / sqrt(variance + kNormEps)
  const void* h0;
  const void* c0;
  const void* w_hh;
  const void* w_hr;
  void* d_products;   // [N, D*G*H] gradient of the products that were normalised
  void* d_gates;      // [N, D*G*H] gradient of gates
  void* d_recurrent;  // [N, D*G*H] gradient of the recurrent part; null unless the cell is split
  void* d_h0;         // [D, B, P]
  void* d_c0;         // [D, B, H]; null where the cell has no c
  void* d_proj;       // [N, D*P] the whole gradient that reaches h_t; null without w_hr
};

// A scan h_t = a_t h_{t-1} + b_t whose a and b come from the gates of a cell in cells/scan.h. CPU only: on a GPU the
// kernel is Triton's. All tensors are time-major and contiguous.
struct ScanShape {
  const char* cell;
  Dtype dtype;
  int64_t batch, steps, hidden;  // B, T, H
  int threads;
};

struct ScanForward {
  ScanShape shape;
  const void* gates;  // [T, B, G*H] pre-activations
  const void* h0;     // [B, H]
  void* y;            // [T, B, H]
};

struct ScanBackward {
  ScanShape shape;
  const void* grad_y;  // [T, B, H]
  const void* gates;   // of forward, with its y
  const void* y;
  const void* h0;
  void* d_gates;  // [T, B, G*H]
  void* d_h0;     // [B, H]
};

// Each returns null, or a message that lives until the thread's next call.
const char* scan_forward(const ScanForward&);
const char* scan_backward(const ScanBackward&);
int scan_gates(const char* cell);  // G, or 0: no such cell

// Scores of additive attention, s[b, m, k] = sum over h of w[h] tanh(q[b, m, h] + k[b, k, h]). CPU only: on a GPU the
// kernel is Triton's. Contiguous; scores and their gradient are fp32, for fp64 fp64.
struct AdditiveShape {
  Dtype dtype;
  int64_t batch, queries, keys, hidden;  // B, M, K, H
  int threads;
};

struct AdditiveForward {
  AdditiveShape shape;
  const void* query;   // [B, M, H]
  const void* key;     // [B, K, H]
  const void* weight;  // [H]
  void* scores;        // [B, M, K]
};

struct AdditiveBackward {
  AdditiveShape shape;
  const void* grad;  // [B, M, K]
  const void* query;
  const void* key;
  const void* weight;
  void* d_query;
  void* d_key;
  void* d_weight;
};

// Each returns null, or a message that lives until the thread's next call.
const char* additive_forward(const AdditiveForward&);
const char* additive_backward(const AdditiveBackward&);

// A tensor [B, N, T, *] whose last dimension is contiguous, and the distances between its elements elsewhere.
struct Heads {
  const void* data;
  int64_t batch, head, row;
};

// Attention as docs/kernels/attention.md defines it. CPU only: on a GPU the kernel is Triton's. "Wide" is fp32, for
// fp64 fp64. Sequences: the batch rows, or with starts parts of the one batch row.
struct AttentionShape {
  Dtype dtype;
  int64_t batch, heads, key_heads, queries, keys, size, value_size;  // B, N, N / G, M, K, E, Ev
  int64_t sequences;                                                 // S: B, or how many lie one after another
  const int32_t* starts_q;  // [S + 1], first queries, and where the last sequence ends; null: none
  const int32_t* starts_k;  // [S + 1] likewise
  double scale, softcap;    // softcap 0: none
  int64_t left, right;      // keys that a query sees to its sides; -1: all
  bool bottom_right;        // the last query stands at the last key
  double dropout_p;
  int64_t seed;  // of dropout
  int64_t rows;  // queries of one block; 0: as many as suit the cache
  int threads;
};

struct AttentionInputs {
  Heads query, key, value;  // [B, N, M, E], [B, N / G, K, E], [B, N / G, K, Ev]
  const bool* seen;         // mask [B, N, M, K] with mask_strides, true is seen; or null
  const void* bias;         // wide, likewise, added; or null
  int64_t mask_strides[4];
  const void* slopes;  // wide [S, N], or null
  const void* sink;    // wide [N], or null
};

struct AttentionForward {
  AttentionShape shape;
  AttentionInputs in;
  Heads out;  // [B, N, M, Ev], written
  void* lse;  // wide [B, N, M], written
};

struct AttentionBackward {
  AttentionShape shape;
  AttentionInputs in;
  Heads grad_out;                 // [B, N, M, Ev]
  const void* grad_lse;           // wide [B, N, M], or null
  Heads d_query, d_key, d_value;  // written; of the inputs' sizes, or null
  void* d_slopes;                 // wide [S, N], written; or null
  void* d_sink;                   // wide [S, N], written, a part for each sequence; or null
};

// Each returns null, or a message that lives until the thread's next call.
const char* attention_forward(const AttentionForward&);
const char* attention_backward(const AttentionBackward&);

// Which weights of attention dropout keeps: those whose word of Philox4x32-10 is at least `limit`. CPU only.
struct DropoutKeep {
  int64_t seed;
  uint32_t limit;        // of 2^32: the probability of dropping
  const int64_t* heads;  // [count], each below 2^32
  int64_t count, first_query, end_query, first_key, end_key;
  bool* keep;  // [count, queries, keys]
  int threads;
};

void dropout_keep(const DropoutKeep&);

// How a kernel is launched.
struct LaunchShape {
  unsigned grid[3] = {1, 1, 1};
  unsigned threads = 32;     // of a block; 0: no kernel of ours
  size_t shared_bytes = 0;   // dynamic
  unsigned cluster = 1;      // blocks along x
  bool cooperative = false;  // all blocks are resident together
  unsigned resident = 0;     // clusters, or blocks without, that the GPU holds at once; 0: not asked
  // May begin while the launch in front still runs: the kernel then calls dependency_wait() before it reads what that
  // one wrote. A plain launch on GPUs before sm_90.
  bool programmatic = false;
  bool replayed = false;  // told to a witness: one of those that a replay stands for
};

// Told of one launch; the kernel's name as in machine_code.json. Without threads: a library GEMM, or the replay of
// recorded launches, which are told behind it.
struct Witness {
  void (*launched)(void* context, const char* kernel, const LaunchShape& shape);
  void* context;
};

// Each function returns null, or a message that lives until the thread's next call.
struct Provider {
  const char* name;
  const char* (*forward)(const RecurrentForward&);
  const char* (*backward)(const RecurrentBackward&);
  // Bytes of workspace that the call needs, from its sizes and from which pointers are null; null: none, ever.
  size_t (*forward_workspace)(const RecurrentForward&);
  size_t (*backward_workspace)(const RecurrentBackward&);
  // Tells the witness what the call would launch, from its sizes and from which pointers are null; nothing runs.
  // Null: the provider launches nothing.
  const char* (*forward_launches)(const RecurrentForward&, const Witness&);
  const char* (*backward_launches)(const RecurrentBackward&, const Witness&);
};

const Provider& cpu_provider();

// What libfusednn_cuda.so and libfusednn_emulated.so export.
using ProviderEntry = const Provider* (*)();
inline constexpr const char* kProviderEntry = "fusednn_provider";

// What the registry knows of a cell.
struct CellInfo {
  const char* name;
  int gates;
  int saved;
  bool cell_state;
  bool split;
  int second_gates;
};

int cell_count();
const CellInfo& cell_info(int index);
const CellInfo* find_cell(const char* name);  // null: no such cell

// The instruction sets of the CPU provider.
int isa_count();
const char* isa_name(int index);
bool isa_supported(int index);          // by the machine that runs this
const char* isa_chosen();               // what the next call uses
const char* set_isa(const char* name);  // returns null or a message; "" or null: the best one
bool built_with_openmp();

}  // namespace fusednn
