// Scans against plain loops over doubles, in every instruction set; their gradients against finite differences.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "cells/scan.h"
#include "tests/check.h"
#include "tests/problem.h"

namespace {

using namespace fusednn;
using namespace fusednn::testing;

struct Sizes {
  long steps, batch, hidden;
};
const Sizes kSizes[] = {{1, 1, 1}, {5, 3, 7}, {9, 2, 129}, {3, 1, 300}, {4, 0, 5}, {0, 2, 5}};

Values random_values(size_t count, double scale, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform(-scale, scale);
  Values values(count);
  for (double& v : values) v = static_cast<float>(uniform(random));
  return values;
}

template <class Cell>
Values plain(const Values& gates, const Values& h0, const Sizes& z) {
  Values y, h = h0;
  for (long t = 0; t < z.steps; ++t) {
    for (long b = 0; b < z.batch; ++b) {
      for (long u = 0; u < z.hidden; ++u) {
        double x[Cell::G];
        for (long g = 0; g < Cell::G; ++g) {
          x[g] = gates[static_cast<size_t>(((t * z.batch + b) * Cell::G + g) * z.hidden + u)];
        }
        double& state = h[static_cast<size_t>(b * z.hidden + u)];
        state = Cell::forward(x, state);
        y.push_back(state);
      }
    }
  }
  return y;
}

template <class T>
std::vector<T> as(const Values& values) {
  return {values.begin(), values.end()};
}

template <class T>
constexpr Dtype kDtype = sizeof(T) == 8 ? Dtype::kFloat64 : Dtype::kFloat32;

template <class T>
struct Scan {
  ScanShape shape;
  std::vector<T> gates, h0, y;

  Scan(const char* cell, const Values& gates, const Values& h0, const Sizes& z, int threads)
      : shape{cell, kDtype<T>, z.batch, z.steps, z.hidden, threads},
        gates(as<T>(gates)),
        h0(as<T>(h0)),
        y(static_cast<size_t>(z.steps * z.batch * z.hidden), std::numeric_limits<T>::quiet_NaN()) {
    const char* error = scan_forward({shape, this->gates.data(), this->h0.data(), y.data()});
    CHECK(error == nullptr, error);
  }
};

double farthest(const Values& truth, const auto& got) {
  double error = 0;
  for (size_t i = 0; i < truth.size(); ++i) {
    if (!(std::fabs(truth[i] - got[i]) <= error)) error = std::fabs(truth[i] - got[i]);
  }
  return error;
}

template <class Cell, class T>
void check_forward(const char* isa, double allowed) {
  for (const Sizes& z : kSizes) {
    const Values gates = random_values(static_cast<size_t>(z.steps * z.batch * Cell::G * z.hidden), 6, 1);
    const Values h0 = random_values(static_cast<size_t>(z.batch * z.hidden), 1, 2);
    const Values truth = plain<Cell>(gates, h0, z);
    const Scan<T> one(Cell::kName, gates, h0, z, 1);
    CHECK(farthest(truth, one.y) < allowed, isa << " " << Cell::kName << " H" << z.hidden);
    CHECK(Scan<T>(Cell::kName, gates, h0, z, 3).y == one.y, isa << " threads change bits");
  }
}

template <class Cell>
void check_backward(const char* isa) {
  for (const Sizes& z : {Sizes{4, 2, 3}, Sizes{3, 1, 17}}) {
    const Values gates = random_values(static_cast<size_t>(z.steps * z.batch * Cell::G * z.hidden), 3, 3);
    const Values h0 = random_values(static_cast<size_t>(z.batch * z.hidden), 1, 4);
    const Values grad = random_values(static_cast<size_t>(z.steps * z.batch * z.hidden), 1, 5);
    const auto loss = [&](const Values& g, const Values& h) {
      const Values y = plain<Cell>(g, h, z);
      double sum = 0;
      for (size_t i = 0; i < y.size(); ++i) sum += y[i] * grad[i];
      return sum;
    };
    const Scan<double> scan(Cell::kName, gates, h0, z, 1);
    Values d_gates(gates.size(), NAN), d_h0(h0.size(), NAN);
    const char* error = scan_backward(
        {scan.shape, grad.data(), scan.gates.data(), scan.y.data(), scan.h0.data(), d_gates.data(), d_h0.data()});
    CHECK(error == nullptr, error);
    const auto slope = [&](bool of_gates, size_t i) {
      constexpr double kStep = 1e-5;
      Values up_g = gates, down_g = gates, up_h = h0, down_h = h0;
      (of_gates ? up_g : up_h)[i] += kStep, (of_gates ? down_g : down_h)[i] -= kStep;
      return (loss(up_g, up_h) - loss(down_g, down_h)) / (2 * kStep);
    };
    for (size_t i = 0; i < gates.size(); ++i) {
      CHECK(std::fabs(d_gates[i] - slope(true, i)) < 1e-7, isa << " " << Cell::kName << " gate " << i);
    }
    for (size_t i = 0; i < h0.size(); ++i) {
      CHECK(std::fabs(d_h0[i] - slope(false, i)) < 1e-7, isa << " " << Cell::kName << " h0 " << i);
    }
  }
}

}  // namespace

TEST(scans_agree_with_plain_loops_in_every_isa_whatever_the_threads) {
  for_each_isa([](const char* isa) {
    check_forward<cells::MinGru, float>(isa, 1e-5);
    check_forward<cells::MinLstm, float>(isa, 1e-5);
    check_forward<cells::MinGru, double>(isa, 1e-14);
    check_forward<cells::MinLstm, double>(isa, 1e-14);
  });
}

TEST(gradients_of_scans_agree_with_finite_differences) {
  for_each_isa([](const char* isa) {
    check_backward<cells::MinGru>(isa);
    check_backward<cells::MinLstm>(isa);
  });
}

TEST(extreme_gates_keep_or_replace_the_state) {
  for_each_isa([](const char* isa) {
    for (const float huge : {90.f, 1e4f, 1e30f}) {
      const Sizes z{1, 1, 2};
      // Units 0 and 1: forget everything, keep everything.
      const Scan<float> gru("min_gru", {huge, -huge, 3, 3}, {7, 7}, z, 1);
      CHECK(gru.y[0] == 3.5f && gru.y[1] == 7.f, isa << " min_gru " << gru.y[0] << " " << gru.y[1]);
      const Scan<float> lstm("min_lstm", {-2 * huge, -huge, -huge, -2 * huge, 3, 3}, {7, 7}, z, 1);
      CHECK(lstm.y[0] == 3.5f && lstm.y[1] == 7.f, isa << " min_lstm " << lstm.y[0] << " " << lstm.y[1]);
    }
  });
}

TEST(an_unknown_scan_is_refused) {
  ScanForward a{};
  a.shape.cell = "lstm";
  CHECK(scan_forward(a) != nullptr, "lstm is no scan");
}
