// What a profiler sees on the host's time line: one range a call, and within it one for each 64 steps that are launches
// of their own.
#include <string>
#include <vector>

#include "cuda/ranges.h"
#include "tests/check.h"
#include "tests/problem.h"

namespace {

using namespace fusednn;
using namespace fusednn::testing;

using Names = std::vector<std::string>;
Names begun;
int open = 0;

constexpr cuda::RangeListener kListener{
    [](const char* name) { begun.push_back(std::string(static_cast<size_t>(2 * open++), ' ') + name); },
    [] { --open; }};

Names ranges_of(const char* strategy, long steps, bool backward = false) {
  const CellInfo& cell = *find_cell("lstm");
  const Problem p = make_problem({2, steps, 5, 0, 1}, cell, Dtype::kFloat32, 1);
  begun.clear();
  ForwardCall forward(p, cell, Dtype::kFloat32, 1, true, strategy);
  if (!backward) cuda::range_listener = &kListener;
  forward.run();
  const Outputs out = forward.read();
  cuda::range_listener = &kListener;
  if (backward) BackwardCall(p, out, cell, Dtype::kFloat32, 1, strategy).run();
  cuda::range_listener = nullptr;
  return begun;
}

}  // namespace

TEST(a_call_is_a_range_and_each_chunk_of_64_steps_is_one_within_it) {
  for (const char* strategy : {"gemm", "step"}) {
    for (bool backward : {false, true}) {
      const std::string call =
          std::string("lstm ") + strategy + (backward ? " backward" : " forward") + " float32 T=130 B=2 H=5";
      // backward of `step` has one launch more than steps: the product of the first one's gradients
      const bool more = backward && std::string(strategy) == "step";
      const Names want{call, "  steps 0-63", "  steps 64-127", more ? "  steps 128-130" : "  steps 128-129"};
      CHECK(ranges_of(strategy, 130, backward) == want, call);
      CHECK(open == 0, "all are closed");
    }
  }
}

TEST(a_replay_is_a_range_and_the_steps_behind_it_are_another) {
  const Names want{"lstm graph forward float32 T=130 B=2 H=5", "  steps 0-63, replay", "  steps 64-127, replay",
                   "  steps 128-129"};
  CHECK(ranges_of("graph", 130) == want, "graph");
}

TEST(one_launch_for_all_steps_has_one_range) {
  for (const char* strategy : {"block", "grid"}) {
    const Names want{std::string("lstm ") + strategy + " forward float32 T=70 B=2 H=5"};
    CHECK(ranges_of(strategy, 70) == want, strategy);
  }
}

TEST(a_call_that_fails_closes_its_range) {
  cuda::range_listener = &kListener;
  RecurrentForward a{};
  a.shape.cell = "lstm", a.shape.strategy = "gemm", a.shape.dtype = Dtype::kFloat32;
  a.shape.batch = a.shape.steps = a.shape.hidden = a.shape.proj = a.shape.directions = a.shape.heads = a.shape.layers =
      1;
  a.shape.gemm = [](const Gemm&) { throw std::runtime_error("refused"); };
  const char* error = provider_of("gemm").forward(a);
  cuda::range_listener = nullptr;
  CHECK(error != nullptr && open == 0, "closed behind an error");
}
