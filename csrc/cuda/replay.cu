#include "cuda/replay.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <type_traits>

#include "cuda/ranges.h"
#include "cuda/sequence.h"

namespace fusednn::cuda {

// What a call changes of a chunk, as the argument of a kernel.
struct alignas(16) Parcel {
  Bytes16 piece[64];
};

template <class Track>
struct Called {
  Track track;
  int64_t next;  // step to be handled
};

// The call that runs, and the steps of the chunk that runs.
template <class Track>
struct Chunk {
  static_assert(std::is_trivially_copyable_v<Track> && sizeof(Called<Track>) <= sizeof(Parcel));
  union {
    Called<Track> call;
    Parcel parcel;
  };
  Both<typename Track::Step> steps[kChunk];
};

template <class Parcel>
__global__ void __launch_bounds__(32) put(Parcel from, Parcel* to) {
  for (unsigned i = threadIdx.x; i < 64; i += 32) to->piece[i] = from.piece[i];
}

template <class Track>
__global__ void __launch_bounds__(kChunk* kMostDirections, 1) next_steps(Chunk<Track>* chunk) {
  const int64_t n = threadIdx.x % kChunk, d = threadIdx.x / kChunk;
  Called<Track>& call = chunk->call;
  if (d < call.track.D / call.track.heads) chunk->steps[n].step[d] = call.track.handled(d, call.next + n);
  block_sync();
  if (threadIdx.x == 0) call.next += kChunk;
}

namespace {

#if defined(FUSEDNN_EMULATE)

bool captured(void*) {
  return false;
}

// What lives as long as the process, and serves the calls of one stream.
struct Place {
  auto operator<=>(const Place&) const = default;
  const char* find(void*) { return nullptr; }
};

// Memory that kernels reach.
template <class T>
class Lasting {
 public:
  const char* make() { return memory_ = std::make_unique<T>(), nullptr; }
  T* data() { return memory_.get(); }

 private:
  std::unique_ptr<T> memory_;
};

class Recording {
 public:
  template <class Body>
  const char* record(Body body) {
    recorded = &launches_;
    const char* error = body(nullptr);
    recorded = nullptr;
    return error;
  }
  const char* replay(void*) const {
    for (const auto& make : launches_) FUSEDNN_TRY(make());
    return nullptr;
  }

 private:
  Launches launches_;
};

#else

bool captured(void* stream) {
  cudaStreamCaptureStatus status;
  const cudaError_t error = cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status);
  return error != cudaSuccess || status != cudaStreamCaptureStatusNone;
}

struct Place {
  int device = 0;
  unsigned long long stream = 0;  // its number, which no later stream has
  auto operator<=>(const Place&) const = default;

  const char* find(void* of) {
    FUSEDNN_TRY(message_of(cudaGetDevice(&device)));
    return message_of(cudaStreamGetId(static_cast<cudaStream_t>(of), &stream));
  }
};

template <class T>
class Lasting {
 public:
  const char* make() { return message_of(cudaMalloc(&memory_, sizeof(T))); }
  T* data() { return static_cast<T*>(memory_); }

 private:
  void* memory_ = nullptr;
};

class Recording {
 public:
  template <class Body>
  const char* record(Body body) {
    cudaStream_t side;  // records, and runs nothing
    cudaGraph_t graph = nullptr;
    FUSEDNN_TRY(message_of(cudaStreamCreateWithFlags(&side, cudaStreamNonBlocking)));
    const char* error = message_of(cudaStreamBeginCapture(side, cudaStreamCaptureModeRelaxed));
    if (error == nullptr) {
      error = body(side);
      const char* ended = message_of(cudaStreamEndCapture(side, &graph));
      if (error == nullptr) error = ended;
    }
    if (error == nullptr) error = message_of(cudaGraphInstantiate(&ready_, graph, 0));
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaStreamDestroy(side);
    return error;
  }
  const char* replay(void* stream) const {
    return message_of(cudaGraphLaunch(ready_, static_cast<cudaStream_t>(stream)));
  }

 private:
  cudaGraphExec_t ready_ = nullptr;
};

#endif

const char* launch_steps(const StepKernels& kernels, const RecurrentShape& s, const Given<ForwardStep>& step,
                         bool behind) {
  return kernels.forward(s, step, behind);
}
const char* launch_steps(const StepKernels& kernels, const RecurrentShape& s, const Given<BackwardStep>& step,
                         bool behind) {
  return kernels.backward(s, step, behind);
}

// What one replay launches.
template <class Track>
const char* launch_chunk(RecurrentShape s, const StepKernels& kernels, Chunk<Track>& chunk, void* stream) {
  LaunchShape shape;
  shape.threads = kChunk * kMostDirections;
  FUSEDNN_TRY(launch<next_steps<Track>>(shape, stream, &chunk));
  s.stream = stream;
  for (int64_t n = 0; n < kChunk; ++n) {
    FUSEDNN_TRY(launch_steps(kernels, s, Given<typename Track::Step>{{}, &chunk.steps[n]}, n > 0));
  }
  return nullptr;
}

template <class Track>
const char* put_track(const Track& track, Chunk<Track>& chunk, void* stream) {
  Chunk<Track> changed{};
  changed.call = {track, 0};
  return launch<put<Parcel>>(LaunchShape{}, stream, changed.parcel, &chunk.parcel);
}

template <class Track>
const char* tell(const RecurrentShape& s, const StepKernels& kernels, const Track& track, int64_t replays) {
  Chunk<Track> none{};
  FUSEDNN_TRY(put_track(track, none, nullptr));
  LaunchShape replay;
  replay.threads = 0;
  for (int64_t i = 0; i < replays; ++i) {
    witness->launched(witness->context, "replay of 64 steps", replay);
    told_as_replayed = true;
    const char* failed = launch_chunk(s, kernels, none, nullptr);
    told_as_replayed = false;
    if (failed != nullptr) return failed;
  }
  return nullptr;
}

// Chunks that were recorded, for all calls of a stream whose launches are the same.
template <class Track>
struct Recorded {
  Lasting<Chunk<Track>> chunk;
  Recording recording;
};

template <class Track>
const char* replay(const RecurrentShape& s, const StepKernels& kernels, const Track& track, int64_t& done) {
  const int64_t steps = track.steps(), replays = steps / kChunk + (steps % kChunk > kFew);
  if (replays == 0 || s.batch == 0) return nullptr;
  if (witness == nullptr && captured(s.stream)) return nullptr;
  done = replays * kChunk;
  if (witness != nullptr) return tell(s, kernels, track, replays);

  using Key = std::tuple<Place, const StepKernels*, int64_t, int64_t, int64_t, int64_t>;
  static std::map<Key, Recorded<Track>> all;
  static std::mutex mutex;
  // Held until the last replay: between them no other call may put its track.
  const std::lock_guard<std::mutex> alone(mutex);
  Place place;
  FUSEDNN_TRY(place.find(s.stream));
  const Key key{place, &kernels, (s.batch + kRows - 1) / kRows, s.hidden, s.directions, s.heads};
  auto found = all.find(key);
  if (found == all.end()) {
#if !defined(FUSEDNN_EMULATE)
    const CaptureUntouched captures;
#endif
    Recorded<Track> made;
    FUSEDNN_TRY(made.chunk.make());
    const auto body = [&](void* stream) { return launch_chunk(s, kernels, *made.chunk.data(), stream); };
    FUSEDNN_TRY(made.recording.record(body));
    found = all.emplace(key, std::move(made)).first;
  }
  Recorded<Track>& ready = found->second;
  FUSEDNN_TRY(put_track(track, *ready.chunk.data(), s.stream));
  for (int64_t i = 0; i < replays; ++i) {
    const int64_t end = std::min((i + 1) * kChunk, steps);
    const Range range(
        [&] { return "steps " + std::to_string(i * kChunk) + "-" + std::to_string(end - 1) + ", replay"; });
    FUSEDNN_TRY(ready.recording.replay(s.stream));
  }
  return nullptr;
}

}  // namespace

const char* replay_steps(const RecurrentShape& s, const StepKernels& kernels, const ForwardTrack& track,
                         int64_t& done) {
  return replay(s, kernels, track, done);
}
const char* replay_steps(const RecurrentShape& s, const StepKernels& kernels, const BackwardTrack& track,
                         int64_t& done) {
  return replay(s, kernels, track, done);
}

}  // namespace fusednn::cuda
