// The floors under a recurrent step on this GPU: what one launch, one barrier or one trip of data costs at least.
//   floors [repetitions]   prints one JSON object a line: {"floor": name, "us": median, "low": q25, "high": q75, ...}
// Times come from events around many repetitions inside one launch or one stream; cycles from the kernel's own clock.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

namespace cg = cooperative_groups;

namespace {

constexpr int kEpochs = 1000;    // barriers or trips inside one launch
constexpr int kLaunches = 1024;  // launches between two events
constexpr int kGraphNodes = 64;  // kernel nodes of one captured chunk
constexpr int kThreads = 256;

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "floors: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
#define CHECK(call) check(call, #call)

__global__ void empty() {}

__global__ void grid_barriers(int epochs) {
  for (int i = 0; i < epochs; ++i) cg::this_grid().sync();
}

__global__ void block_barriers(int epochs) {
  for (int i = 0; i < epochs; ++i) __syncthreads();
}

__global__ void cluster_barriers(int epochs) {
#if __CUDA_ARCH__ >= 900
  for (int i = 0; i < epochs; ++i) cg::this_cluster().sync();
#endif
}

// One flag a block, each in its own 128 bytes: every block publishes its epoch and waits for all others.
__global__ void flag_exchange(volatile unsigned* flags, int epochs) {
  for (int epoch = 1; epoch <= epochs; ++epoch) {
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      flags[blockIdx.x * 32] = static_cast<unsigned>(epoch);
    }
    for (unsigned peer = threadIdx.x; peer < gridDim.x; peer += blockDim.x) {
      while (flags[peer * 32] < static_cast<unsigned>(epoch)) {
      }
    }
    __threadfence();
    __syncthreads();
  }
}

// A chain of dependent loads that bypass L1: its time a hop is the latency of L2.
__global__ void chase(const unsigned* next, int hops, unsigned* out, long long* cycles) {
  if (threadIdx.x != 0) return;
  unsigned at = 0;
  for (int i = 0; i < 64; ++i) at = __ldcg(next + at);
  const long long start = clock64();
  for (int i = 0; i < hops; ++i) at = __ldcg(next + at);
  *cycles = clock64() - start;
  *out = at;
}

// The same chain through the shared memory of the next block of the cluster.
__global__ void chase_remote(int hops, unsigned* out, long long* cycles) {
#if __CUDA_ARCH__ >= 900
  __shared__ unsigned next[1024];
  cg::cluster_group cluster = cg::this_cluster();
  for (unsigned i = threadIdx.x; i < 1024; i += blockDim.x) next[i] = (i * 33 + 1) % 1024;
  cluster.sync();
  const unsigned* remote = cluster.map_shared_rank(next, (cluster.block_rank() + 1) % cluster.num_blocks());
  if (threadIdx.x == 0 && cluster.block_rank() == 0) {
    unsigned at = 0;
    const long long start = clock64();
    for (int i = 0; i < hops; ++i) at = remote[at];
    *cycles = clock64() - start;
    *out = at;
  }
  cluster.sync();
#endif
}

struct Spread {
  double low, median, high;
};

Spread spread(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return {v[v.size() / 4], v[v.size() / 2], v[v.size() * 3 / 4]};
}

void print(const std::string& name, Spread s, const std::string& more = "") {
  std::printf("{\"floor\": \"%s\", \"us\": %.4f, \"low\": %.4f, \"high\": %.4f%s}\n", name.c_str(), s.median, s.low,
              s.high, more.c_str());
  std::fflush(stdout);
}

class Bench {
 public:
  explicit Bench(int repetitions) : repetitions_(repetitions) {
    CHECK(cudaStreamCreate(&stream));
    CHECK(cudaEventCreate(&start_));
    CHECK(cudaEventCreate(&stop_));
    CHECK(cudaGetDeviceProperties(&device, 0));
    CHECK(cudaDeviceGetAttribute(&khz, cudaDevAttrClockRate, 0));
  }

  // Microseconds a unit of work, of which one call of `run` does `units`.
  Spread time(int units, const std::function<void()>& run) {
    std::vector<double> us;
    for (int i = -3; i < repetitions_; ++i) {  // the first three warm up
      CHECK(cudaEventRecord(start_, stream));
      run();
      CHECK(cudaEventRecord(stop_, stream));
      CHECK(cudaEventSynchronize(stop_));
      CHECK(cudaGetLastError());
      float ms = 0;
      CHECK(cudaEventElapsedTime(&ms, start_, stop_));
      if (i >= 0) us.push_back(ms * 1e3 / units);
    }
    return spread(us);
  }

  void launch(const void* kernel, int blocks, int cluster, bool cooperative, bool programmatic, void** args) {
    cudaLaunchAttribute attributes[3];
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(kThreads);
    config.stream = stream;
    config.attrs = attributes;
    if (cluster > 1) {
      attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
      attributes[config.numAttrs++].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    }
    if (cooperative) {
      attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
      attributes[config.numAttrs++].val.cooperative = 1;
    }
    if (programmatic) {
      attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
    CHECK(cudaLaunchKernelExC(&config, kernel, args));
  }

  cudaStream_t stream;
  cudaDeviceProp device;
  int khz;

 private:
  int repetitions_;
  cudaEvent_t start_, stop_;
};

template <class Kernel>
const void* address(Kernel* kernel) {
  return reinterpret_cast<const void*>(kernel);
}

void launches(Bench& bench) {
  const auto many = [&](bool programmatic) {
    for (int i = 0; i < kLaunches; ++i) bench.launch(address(empty), 1, 1, false, programmatic, nullptr);
  };
  print("launch", bench.time(kLaunches, [&] { many(false); }));
  if (bench.device.major >= 9) print("launch_programmatic", bench.time(kLaunches, [&] { many(true); }));

  cudaGraph_t graph;
  cudaGraphExec_t ready;
  CHECK(cudaStreamBeginCapture(bench.stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < kGraphNodes; ++i) bench.launch(address(empty), 1, 1, false, false, nullptr);
  CHECK(cudaStreamEndCapture(bench.stream, &graph));
  CHECK(cudaGraphInstantiate(&ready, graph, 0));
  const auto replay = [&] {
    for (int i = 0; i < kLaunches / kGraphNodes; ++i) CHECK(cudaGraphLaunch(ready, bench.stream));
  };
  print("graph_node", bench.time(kLaunches, replay));
  CHECK(cudaGraphExecDestroy(ready));
  CHECK(cudaGraphDestroy(graph));
}

void barriers(Bench& bench) {
  int epochs = kEpochs;
  void* args[] = {&epochs};
  const auto blocks = [](int n) { return ", \"blocks\": " + std::to_string(n); };
  print("block_barrier", bench.time(epochs, [&] { bench.launch(address(block_barriers), 1, 1, false, false, args); }));
  const int all = bench.device.multiProcessorCount;
  for (int n : {16, 64, all}) {
    print("grid_sync", bench.time(epochs, [&] { bench.launch(address(grid_barriers), n, 1, true, false, args); }),
          blocks(n));
  }
  unsigned* flags;
  CHECK(cudaMalloc(&flags, sizeof(unsigned) * 32 * static_cast<size_t>(all)));
  void* flag_args[] = {&flags, &epochs};
  for (int n : {16, 64, all}) {
    const auto exchange = [&] {
      CHECK(cudaMemsetAsync(flags, 0, sizeof(unsigned) * 32 * static_cast<size_t>(all), bench.stream));
      bench.launch(address(flag_exchange), n, 1, true, false, flag_args);
    };
    print("flag_exchange", bench.time(epochs, exchange), blocks(n));
  }
  CHECK(cudaFree(flags));
  if (bench.device.major < 9) return;
  CHECK(cudaFuncSetAttribute(address(cluster_barriers), cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  for (int n : {2, 4, 8, 16}) {
    if (n == 16 && bench.device.major != 9 && bench.device.major != 10) continue;  // elsewhere 8 is the most
    const auto run = [&] { bench.launch(address(cluster_barriers), n, n, false, false, args); };
    print("cluster_barrier", bench.time(epochs, run), blocks(n));
  }
}

void latencies(Bench& bench) {
  constexpr unsigned kEntries = 1u << 20;  // 4 MiB: in L2 of every GPU since Ampere
  std::vector<unsigned> next(kEntries);
  for (unsigned i = 0; i < kEntries; ++i) next[i] = (i * 40961u + 8193u) % kEntries;  // full period, far hops
  unsigned *chain, *out;
  long long* cycles;
  CHECK(cudaMalloc(&chain, kEntries * sizeof(unsigned)));
  CHECK(cudaMalloc(&out, sizeof(unsigned)));
  CHECK(cudaMallocHost(&cycles, sizeof(long long)));
  CHECK(cudaMemcpy(chain, next.data(), kEntries * sizeof(unsigned), cudaMemcpyHostToDevice));
  int hops = 4096;
  const auto hop_cycles = [&] { return ", \"cycles\": " + std::to_string(static_cast<double>(*cycles) / hops); };
  // The chain runs once over 4 MiB first, so that it is in L2.
  int warm = 1 << 20;
  void* warm_args[] = {&chain, &warm, &out, &cycles};
  bench.launch(address(chase), 1, 1, false, false, warm_args);
  CHECK(cudaStreamSynchronize(bench.stream));
  void* args[] = {&chain, &hops, &out, &cycles};
  Spread l2 = bench.time(hops, [&] { bench.launch(address(chase), 1, 1, false, false, args); });
  print("l2_load", l2, hop_cycles());
  if (bench.device.major >= 9) {
    void* remote_args[] = {&hops, &out, &cycles};
    Spread remote = bench.time(hops, [&] { bench.launch(address(chase_remote), 2, 2, false, false, remote_args); });
    print("distributed_shared_load", remote, hop_cycles());
  }
  CHECK(cudaFreeHost(cycles));
  CHECK(cudaFree(out));
  CHECK(cudaFree(chain));
}

}  // namespace

int main(int argc, char** argv) {
  Bench bench(argc > 1 ? std::max(1, std::atoi(argv[1])) : 31);
  std::printf("{\"device\": \"%s\", \"sm\": %d, \"multiprocessors\": %d, \"mhz\": %d}\n", bench.device.name,
              bench.device.major * 10 + bench.device.minor, bench.device.multiProcessorCount, bench.khz / 1000);
  launches(bench);
  barriers(bench);
  latencies(bench);
}
