// The persistent rungs in particular: layouts that small sizes do not give by themselves, the exchange alone over many
// messages, and waits that expire. In the emulation; what every rung must do is in test_recurrent.
#include <algorithm>
#include <cmath>
#include <string>

#include "cuda/exchange.h"
#include "cuda/launch.h"
#include "cuda/waits.h"
#include "tests/check.h"
#include "tests/device.h"
#include "tests/emulated.h"
#include "tests/problem.h"

namespace {

using namespace fusednn;
using namespace fusednn::testing;

constexpr const char* kRungs[] = {"block", "cluster", "grid"};

struct Results {
  Outputs out;
  Gradients back;
};

Results run(const Problem& p, const CellInfo& cell, Dtype dtype, const char* rung) {
  ForwardCall forward(p, cell, dtype, 1, true, rung);
  forward.run();
  const Outputs out = forward.read();
  BackwardCall backward(p, out, cell, dtype, 1, rung);
  backward.run();
  return {out, backward.read()};
}

void agrees(const Problem& p, const CellInfo& cell, Dtype dtype, const char* rung, const std::string& size) {
  const Outputs truth = naive_forward(p, cell, dtype);
  const Gradients gradients = naive_backward(p, cell, dtype);
  const Results got = run(p, cell, dtype, rung);
  const double eps = dtype == Dtype::kFloat32 ? 0x1p-23 : dtype == Dtype::kBFloat16 ? 0x1p-7 : 0x1p-10;
  const std::string what = std::string(rung) + " " + cell.name + " " + size;
  CHECK(distance(got.out.y, truth.y, eps) < 40, what << " y " << distance(got.out.y, truth.y, eps));
  CHECK(distance(got.out.c_n, truth.c_n, eps) < 40, what << " c_n");
  CHECK(distance(got.out.states, truth.states, eps) < 40, what << " states");
  if (dtype != Dtype::kFloat32 && std::string(cell.name) == "rnn_relu") return;  // its derivative jumps
  CHECK(distance(got.back.d_gates, gradients.d_gates, eps) < 40, what << " d_gates");
  CHECK(distance(got.back.d_h0, gradients.d_h0, eps) < 40, what << " d_h0");
  CHECK(distance(got.back.d_c0, gradients.d_c0, eps) < 40, what << " d_c0");
}

void agrees(const Size& size, const char* rung) {
  for_each_cell([&](const CellInfo& cell) {
    for (Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16}) {
      agrees(make_problem(size, cell, dtype, 3), cell, dtype, rung, text(size));
    }
  });
}

// Of the options those that the persistent rungs have, each alone and then together.
enum class Option { kMask, kZoneoutH, kZoneoutC, kExpected, kAll };

Problem asking(Option option, Problem p, long heads, const CellInfo& cell, Dtype dtype) {
  const Problem all = with_options(p, heads, cell, dtype, 9);
  const bool every = option == Option::kAll;
  p.heads = heads;
  if (every || option == Option::kMask) p.mask = all.mask;
  if (every || option == Option::kZoneoutH || option == Option::kExpected) p.zoneout_h = all.zoneout_h;
  if (every || option == Option::kZoneoutC || option == Option::kExpected) p.zoneout_c = all.zoneout_c;
  if (option != Option::kExpected) p.seeds = all.seeds;
  return p;
}

bool same(const Values& a, const Values& b) {
  return a == b;
}

// ------- the exchange alone

// A number form of its own, so that its code is that of this file.
struct Words : cuda::Float32 {};

// Some are the NaN of which all bits are set.
float value_of(int n, int column, int part, int unit, int row) {
  if ((n + unit + row) % 7 == 0) return cuda::bits_as<float>(~0u);
  return static_cast<float>(((n * 3 + column) * 5 + part) * 4096 + unit * 8 + row);
}

// As it arrives: on `grid` that NaN stands for a word that has not come, and another one is sent.
cuda::u32 arrives(float value, cuda::Rung rung) {
  const cuda::u32 bits = cuda::bits_as<cuda::u32>(value);
  return rung == cuda::Rung::kGrid && bits == ~0u ? bits - 1 : bits;
}

// What a kernel does between messages: the warps of a tile read n, meet, and those that finish units send n + 1; those
// of all columns one after the other, as a layer does with those from below and its own. Block 1 begins late by so many
// turns.
template <int kParts>
__global__ void pass_messages(cuda::Geometry z, int messages, cuda::u64 late, int* wrong) {
  cuda::Exchange<Words> mail(z);
  mail.open();
  if (mail.rank >= z.blocks) return mail.close();
  const int padded = z.unit_tiles * cuda::kTileUnits;
  const auto send = [&](int n, int column) {
    for (int part = 0; part < kParts; ++part) {
      for (int i = 0; i < mail.items; ++i) {
        mail.template put<kParts>(part, i, value_of(n, column, part, mail.unit(i), mail.row(i)));
      }
    }
    mail.template send<kParts>(static_cast<cuda::u32>(n), mail.channel(column), mail.template route<kParts>());
  };
  const cuda::u64 begin = cuda::nanoseconds();
  while (mail.rank == 1 && cuda::nanoseconds() - begin < late) cuda::spin("a late block");
  for (int column = 0; column < z.columns; ++column) send(0, column);
  for (int n = 0; n < messages; ++n) {
    for (int column = 0; column < z.columns; ++column) {
      if (mail.works) {
        const int first = mail.slice * z.round[0].run, end = std::min(first + z.round[0].run, z.round[0].chunks);
        const cuda::Bytes16* found = mail.receive(static_cast<cuda::u32>(n), mail.channel(column), z.round[0]);
        for (int i = 0; i < end - first; ++i) {
          const int piece = i * 32 + (mail.lane + 13) % 32;  // another lane's
          const int row = piece % 32 / 4;
          for (int word = 0; word < 4; ++word) {
            const int k = (first + piece / 32) * 16 + piece % 4 * 4 + word;
            const float want = value_of(n, column, k / padded, k % padded, row);
            *wrong += found[piece].word[word] != arrives(want, z.rung);
          }
        }
      }
      if (mail.works) mail.await_next(static_cast<cuda::u32>(n), mail.channel(column), z.round[0]);
    }
    cuda::block_sync();
    for (int column = 0; n + 1 < messages && column < z.columns; ++column) send(n + 1, column);
  }
  mail.close();
}

struct Passed {
  int wrong;
  bool fault;
};

template <int kParts>
Passed pass(const char* rung, int hidden, int batch, int messages, cuda::u64 patience = cuda::wait_patience(),
            cuda::u64 late = 0) {
  RecurrentShape s{};
  s.cell = "lstm", s.strategy = rung, s.dtype = Dtype::kFloat32;
  s.batch = batch, s.steps = messages, s.rows = batch * messages, s.hidden = hidden,
  s.directions = s.heads = s.layers = 1;
  cuda::Layout layout;
  const char* error = cuda::lay_out(s, {4, 1, {{1, kParts, 1000}}, 1, 0, nullptr}, layout);
  CHECK(error == nullptr, error);
  std::vector<cuda::Bytes16> mail(layout.mail_bytes / sizeof(cuda::Bytes16));
  int wrong = 0;
  cuda::Geometry z = layout.geometry;
  z.mail = mail.data(), z.patience = patience;
  CHECK(cuda::wait_fault(&z.fault) == nullptr, "no memory for the fault");
  if (!mail.empty()) error = cuda::clear_mail(z, layout.mail_bytes, 4, nullptr);
  CHECK(error == nullptr, error);
  error = cuda::launch<pass_messages<kParts>>(layout.shape, nullptr, z, messages, late, &wrong);
  CHECK(error == nullptr, error);
  error = finish();
  CHECK(error == nullptr, error);
  return {wrong, cuda::take_wait_fault()};
}

}  // namespace

TEST(ten_thousand_messages_of_each_rung_arrive_whole_and_in_time) {
  for (const char* rung : kRungs) {
    for_seeds(5, [&](uint64_t seed) {
      const SmallGpu gpu(6, 4);
      CHECK(pass<1>(rung, 20, 1, 2000).wrong == 0, rung << " seed " << seed);
      CHECK(pass<2>(rung, 40, 20, 50).wrong == 0, rung << " seed " << seed);
    });
  }
}

TEST(messages_that_are_not_waited_for_end_the_kernel_with_a_fault) {
  for (const char* rung : {"cluster", "grid"}) {
    for_seeds(10, [&](uint64_t seed) { CHECK(pass<1>(rung, 40, 1, 6, 0).fault, rung << " seed " << seed); });
    CHECK(pass<1>(rung, 40, 1, 6, 1000, 5'000'000).fault, rung << " with a late block");
  }
}

TEST(several_unit_tiles_a_block_and_weights_beyond_the_registers_agree_with_plain_loops) {
  for (const char* rung : {"cluster", "grid"}) {
    const SmallGpu gpu(3, 2);
    agrees({9, 3, 130, 0, 1}, rung);
    agrees({3, 4, 70, 0, 1, true}, rung);
  }
}

TEST(sequences_longer_than_the_ring_agree_with_plain_loops) {
  const SmallGpu gpu(4, 2);
  agrees({9, 40, 20, 0, 1, true}, "grid");
}

TEST(columns_that_take_turns_agree_with_plain_loops) {
  for (const char* rung : kRungs) {
    const SmallGpu gpu(4, 2);
    agrees({37, 4, 20, 0, 1}, rung);
    agrees({40, 5, 20, 0, 2, true}, rung);
  }
}

TEST(options_agree_with_plain_loops_on_several_blocks) {
  const SmallGpu gpu(8, 4);
  const Size size{10, 4, 40, 0, 2, true};
  for_each_cell([&](const CellInfo& cell) {
    for (const char* rung : kRungs) {
      for (Option option : {Option::kMask, Option::kZoneoutH, Option::kZoneoutC, Option::kExpected, Option::kAll}) {
        if (option == Option::kZoneoutC && !cell.cell_state) continue;
        const std::string what = text(size) + " option " + std::to_string(static_cast<int>(option));
        const Dtype dtype = option == Option::kAll ? Dtype::kBFloat16 : Dtype::kFloat32;
        agrees(asking(option, make_problem(size, cell, dtype, 3), 1, cell, dtype), cell, dtype, rung, what);
      }
    }
  });
}

TEST(options_of_heads_and_of_columns_that_take_turns_agree_with_plain_loops) {
  const SmallGpu gpu(4, 2);
  const Size size{37, 3, 20, 0, 4};
  for_each_cell([&](const CellInfo& cell) {
    for (const char* rung : kRungs) {
      const Problem p = make_problem(size, cell, Dtype::kFloat16, 3);
      agrees(asking(Option::kAll, p, 2, cell, Dtype::kFloat16), cell, Dtype::kFloat16, rung, text(size));
    }
  });
}

TEST(a_mask_of_ones_changes_no_bit) {
  for_each_cell([](const CellInfo& cell) {
    for (const char* rung : kRungs) {
      Problem p = make_problem({9, 4, 20, 0, 2, true}, cell, Dtype::kBFloat16, 8);
      const Results without = run(p, cell, Dtype::kBFloat16, rung);
      p.mask.assign(p.h0.size(), 1);
      const Results with = run(p, cell, Dtype::kBFloat16, rung);
      CHECK(same(without.out.y, with.out.y) && same(without.back.d_gates, with.back.d_gates), rung << cell.name);
    }
  });
}

TEST(a_loop_compiled_for_a_bare_launch_gives_the_bits_of_the_one_for_any_launch) {
  struct Bare {
    const char* rung;
    long hidden;
  };
  for_each_cell([](const CellInfo& cell) {
    for (const Bare& bare : {Bare{"block", 64}, {"cluster", 64}, {"cluster", 128}, {"grid", 256}}) {
      for (const bool packed : {false, true}) {
        Problem p = make_problem({9, 4, bare.hidden, 0, packed ? 2 : 1, packed}, cell, Dtype::kBFloat16, 8);
        const Results without = run(p, cell, Dtype::kBFloat16, bare.rung);
        p.mask.assign(p.h0.size(), 1);  // an option, so the launch is not bare
        const Results with = run(p, cell, Dtype::kBFloat16, bare.rung);
        const bool forward = same(without.out.y, with.out.y) && same(without.out.h_n, with.out.h_n) &&
                             same(without.out.c_n, with.out.c_n) && same(without.out.saved, with.out.saved);
        const bool backward = same(without.back.d_gates, with.back.d_gates) &&
                              same(without.back.d_h0, with.back.d_h0) && same(without.back.d_c0, with.back.d_c0);
        CHECK(forward && backward, bare.rung << " " << cell.name << " H = " << bare.hidden << " packed " << packed);
      }
    }
  });
}

TEST(every_schedule_gives_options_the_same_bits) {
  for_each_cell([](const CellInfo& cell) {
    const SmallGpu gpu(8, 4);
    const Problem p = asking(Option::kAll, make_problem({9, 3, 35, 0, 2, true}, cell, Dtype::kBFloat16, 4), 1, cell,
                             Dtype::kBFloat16);
    for (const char* rung : kRungs) {
      const Results first = run(p, cell, Dtype::kBFloat16, rung);
      for_seeds(4, [&](uint64_t seed) {
        const Results again = run(p, cell, Dtype::kBFloat16, rung);
        CHECK(same(first.out.y, again.out.y) && same(first.back.d_gates, again.back.d_gates),
              rung << " " << cell.name << " seed " << seed);
      });
    }
  });
}

TEST(directions_that_do_not_fit_together_run_one_after_the_other) {
  const SmallGpu gpu(3, 2);
  agrees({5, 4, 40, 0, 2}, "grid");
}

TEST(how_rows_are_spread_over_groups_changes_no_bit) {
  for_each_cell([](const CellInfo& cell) {
    for (const char* rung : {"block", "cluster"}) {
      const Problem p = make_problem({21, 3, 35, 0, 1, true}, cell, Dtype::kBFloat16, 8);
      const Results apart = run(p, cell, Dtype::kBFloat16, rung);
      const SmallGpu gpu(2, 16);
      const Results together = run(p, cell, Dtype::kBFloat16, rung);
      CHECK(same(apart.out.y, together.out.y) && same(apart.back.d_gates, together.back.d_gates),
            rung << " " << cell.name);
    }
  });
}

TEST(rungs_with_an_equal_split_give_equal_bits) {
  for_each_cell([](const CellInfo& cell) {
    const Problem p = make_problem({11, 4, 16, 0, 2}, cell, Dtype::kFloat32, 8);  // one unit tile
    const Results first = run(p, cell, Dtype::kFloat32, "block");
    for (const char* rung : {"cluster", "grid"}) {
      const Results other = run(p, cell, Dtype::kFloat32, rung);
      CHECK(same(first.out.y, other.out.y) && same(first.back.d_gates, other.back.d_gates), rung << " " << cell.name);
    }
  });
}

TEST(a_wait_that_expires_poisons_the_results_and_fails_the_next_call) {
  const CellInfo& cell = *find_cell("lstm");
  const Problem p = make_problem({9, 6, 40, 0, 1}, cell, Dtype::kBFloat16, 8);
  for (const char* rung : {"cluster", "grid"}) {
    for_seeds(10, [&](uint64_t seed) {
      ForwardCall call(p, cell, Dtype::kBFloat16, 1, true, rung);
      const cuda::u64 patience = cuda::wait_patience();
      cuda::wait_patience() = 0;
      call.run();
      cuda::wait_patience() = patience;
      const Outputs out = call.read();
      CHECK(std::any_of(out.h_n.begin(), out.h_n.end(), [](double x) { return std::isnan(x); }),
            rung << " seed " << seed << " gives numbers");
      const char* error = provider_of(rung).forward(call.arguments());
      CHECK(error != nullptr && std::string(error).find("expired") != std::string::npos,
            rung << " seed " << seed << " says nothing");
      CHECK(run(p, cell, Dtype::kBFloat16, rung).out.h_n.size() == out.h_n.size(), "the call after that works");
    });
  }
}

TEST(what_does_not_fit_is_refused_with_the_sizes) {
  const auto refusal = [](const char* rung, Dtype dtype, long hidden, bool projection) -> std::string {
    RecurrentForward a{};
    a.shape.cell = "lstm", a.shape.strategy = rung, a.shape.dtype = dtype, a.shape.hidden = hidden;
    a.shape.proj = projection ? 5 : hidden,
    a.shape.batch = a.shape.steps = a.shape.directions = a.shape.heads = a.shape.layers = 1;
    if (projection) a.w_hr = &a;
    const Witness none{[](void*, const char*, const LaunchShape&) {}, nullptr};
    const char* error = provider_of(rung).forward_launches(a, none);
    return error == nullptr ? "" : error;
  };
  const auto has = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  for (const char* rung : kRungs) {
    CHECK(refusal(rung, Dtype::kBFloat16, 100, false).empty(), rung);
    CHECK(has(refusal(rung, Dtype::kFloat64, 16, false), "float64"), rung);
    CHECK(has(refusal(rung, Dtype::kBFloat16, 16, true), "projection"), rung);
    CHECK(has(refusal(rung, Dtype::kFloat32, 100000, false), "100000"), rung);
  }
  CHECK(has(refusal("block", Dtype::kBFloat16, 129, false), "128 units"), "block");
  CHECK(has(refusal("cluster", Dtype::kFloat32, 1024, false), "KiB"), "cluster");
  const SmallGpu without(132, 0);
  CHECK(has(refusal("cluster", Dtype::kBFloat16, 16, false), "9.0"), "no clusters");
}
