// Memory that the kernels under test reach, and their clock: the host's own for the CPU's and the emulated kernels, the
// GPU's where the test was compiled as CUDA.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/launch.h"

namespace fusednn::testing {

#if defined(FUSEDNN_EMULATE)

inline constexpr bool kGpu = false;

// Bytes that kernels read and write, of exactly this size; `gpu` asks for a GPU's memory where there is one.
class Bytes {
 public:
  explicit Bytes(std::vector<char> values, bool gpu = kGpu) : values_(std::move(values)) { (void)gpu; }
  char* data() { return values_.data(); }
  std::vector<char> read() const { return values_; }

 private:
  std::vector<char> values_;
};

// Waits for all launches; null, or what went wrong.
inline const char* finish() {
  return cuda::settle();
}

template <class Body>
double seconds(Body body) {
  const auto begin = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

#else

inline constexpr bool kGpu = true;

inline void require(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

class Bytes {
 public:
  explicit Bytes(std::vector<char> values, bool gpu = kGpu) : values_(std::move(values)) {
    if (!gpu || values_.empty()) return;
    require(cudaMalloc(&device_, values_.size()));
    require(cudaMemcpy(device_, values_.data(), values_.size(), cudaMemcpyHostToDevice));
  }
  Bytes(Bytes&& other) noexcept : values_(std::move(other.values_)), device_(other.device_) { other.device_ = nullptr; }
  Bytes& operator=(Bytes&&) = delete;
  ~Bytes() { cudaFree(device_); }
  char* data() { return device_ == nullptr ? values_.data() : static_cast<char*>(device_); }
  std::vector<char> read() const {
    std::vector<char> values = values_;
    if (device_ != nullptr) require(cudaMemcpy(values.data(), device_, values.size(), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  std::vector<char> values_;
  void* device_ = nullptr;
};

inline const char* finish() {
  return cuda::message_of(cudaDeviceSynchronize());
}

template <class Body>
double seconds(Body body) {
  cudaEvent_t begin, end;
  float milliseconds;
  require(cudaEventCreate(&begin));
  require(cudaEventCreate(&end));
  require(cudaEventRecord(begin));
  body();
  require(cudaEventRecord(end));
  require(cudaEventSynchronize(end));
  require(cudaEventElapsedTime(&milliseconds, begin, end));
  require(cudaEventDestroy(begin));
  require(cudaEventDestroy(end));
  return milliseconds * 1e-3;
}

#endif

// The same for values of one type.
template <class T>
class Memory {
 public:
  explicit Memory(const std::vector<T>& values) : bytes_(bytes_of(values)) {}
  explicit Memory(size_t count) : Memory(std::vector<T>(count)) {}
  T* data() { return reinterpret_cast<T*>(bytes_.data()); }
  std::vector<T> read() const {
    const std::vector<char> bytes = bytes_.read();
    std::vector<T> values(bytes.size() / sizeof(T));
    if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }

 private:
  static std::vector<char> bytes_of(const std::vector<T>& values) {
    const char* first = reinterpret_cast<const char*>(values.data());
    return {first, first + values.size() * sizeof(T)};
  }
  Bytes bytes_;
};

}  // namespace fusednn::testing
