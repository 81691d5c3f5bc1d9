// The rung `graph`: the launches of kChunk steps, recorded once and made again by one call. Their kernels find the
// steps in memory, where a kernel in front of them writes the next ones.
#pragma once

#include "cuda/step.h"
#include "cuda/track.h"

namespace fusednn::cuda {

constexpr int64_t kChunk = 64, kFew = 16;  // a rest of more than kFew steps is a replay too, of which some do nothing

// How many chunks of the track are replayed; its first `done` steps are. None, where the caller's stream is captured
// itself: steps are recorded there one by one.
const char* replay_steps(const RecurrentShape&, const StepKernels&, const ForwardTrack&, int64_t& done);
const char* replay_steps(const RecurrentShape&, const StepKernels&, const BackwardTrack&, int64_t& done);

}  // namespace fusednn::cuda
