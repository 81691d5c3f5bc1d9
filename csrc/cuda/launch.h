// The one way to launch a kernel, on a GPU or in the emulation.
#pragma once

#include <functional>
#include <tuple>
#include <utility>
#include <vector>

#include "api.h"
#include "cuda/kernel_name.h"
#include "cuda/primitives/device.h"

namespace fusednn::cuda {

// While set, the launches of this thread are told and not made; whether they are those of a recording.
inline thread_local const Witness* witness = nullptr;
inline thread_local bool told_as_replayed = false;

#if defined(FUSEDNN_EMULATE)

// While set, the launches of this thread are kept there and not made.
using Launches = std::vector<std::function<const char*()>>;
inline thread_local Launches* recorded = nullptr;

// Each returns null, or a message that lives until the thread's next call.
template <class... Parameters, class... Arguments>
const char* launch_as(const char* name, void (*kernel)(Parameters...), const LaunchShape& s, void*,
                      Arguments&&... arguments) {
  std::tuple<Parameters...> kept{std::forward<Arguments>(arguments)...};
  const emulation::Shape shape{
      {s.grid[0], s.grid[1], s.grid[2]}, {s.threads, 1, 1}, s.cluster, s.shared_bytes, s.cooperative, s.programmatic};
  const auto make = [name, shape, kernel, kept] {
    return emulation::launch(name, shape, [kernel, kept] { std::apply(kernel, kept); });
  };
  if (recorded == nullptr) return make();
  recorded->push_back(make);
  return nullptr;
}

// What was launched is visible to the host's own reads: nothing on a GPU, where the host reads through the stream.
inline const char* settle() {
  return emulation::synchronize();
}

#else

inline bool programmatic_launch_exists() {
  int device = 0, major = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  return major >= 9;
}

inline const char* message_of(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// While it lives, this thread may ask for memory even where a stream is being captured.
class CaptureUntouched {
 public:
  CaptureUntouched() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~CaptureUntouched() { cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Lets a kernel have the shared memory and the cluster of a launch.
inline cudaError_t allow(const void* kernel, const LaunchShape& s) {
  if (s.shared_bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(s.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  return s.cluster <= 8 ? cudaSuccess : cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

template <class... Parameters, class... Arguments>
const char* launch_as(const char*, void (*kernel)(Parameters...), const LaunchShape& s, void* stream,
                      Arguments&&... arguments) {
  std::tuple<Parameters...> kept{std::forward<Arguments>(arguments)...};
  void* pointers[sizeof...(Parameters)];
  std::apply(
      [&](auto&... each) {
        int i = 0;
        ((pointers[i++] = &each), ...);
      },
      kept);
  const void* function = reinterpret_cast<const void*>(kernel);
  cudaLaunchAttribute attributes[3];
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(s.grid[0], s.grid[1], s.grid[2]);
  config.blockDim = dim3(s.threads);
  config.dynamicSmemBytes = s.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  const auto attribute = [&](cudaLaunchAttributeID id) -> cudaLaunchAttributeValue& {
    attributes[config.numAttrs].id = id;
    return attributes[config.numAttrs++].val;
  };
  if (s.cluster > 1) attribute(cudaLaunchAttributeClusterDimension).clusterDim = {s.cluster, 1, 1};
  if (s.cooperative) attribute(cudaLaunchAttributeCooperative).cooperative = 1;
  if (s.programmatic && programmatic_launch_exists()) {
    attribute(cudaLaunchAttributeProgrammaticStreamSerialization).programmaticStreamSerializationAllowed = 1;
  }
  const cudaError_t error = allow(function, s);
  if (error != cudaSuccess) return message_of(error);
  return message_of(cudaLaunchKernelExC(&config, function, pointers));
}

inline const char* settle() {
  return nullptr;
}

#endif

template <auto kKernel, class... Arguments>
const char* launch(const LaunchShape& shape, void* stream, Arguments&&... arguments) {
  if (witness == nullptr) {
    return launch_as(kernel_name<kKernel>(), kKernel, shape, stream, std::forward<Arguments>(arguments)...);
  }
  LaunchShape told = shape;
  told.replayed = told_as_replayed;
  witness->launched(witness->context, kernel_name<kKernel>(), told);
  return nullptr;
}

}  // namespace fusednn::cuda
