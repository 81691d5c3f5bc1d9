// The cells' equations, by themselves.
#include <cmath>
#include <random>

#include "cells/registry.h"
#include "tests/check.h"

namespace {

using namespace fusednn;

// One step of one unit of a cell as a function of its inputs: x[G], rec[G], h, c, and for a second product its factor
// w_m, with which the first half's result enters the second gates (a product with one unit).
template <class Cell>
struct Unit {
  static constexpr int G = Cell::G, S = Cell::S, kFirst = G - Cell::kSecondGates;
  double x[G], rec[G], h, c, w_m = 0.7;

  // The loss h' + 0.3 c'.
  double loss(double* saved, double* h_next) const {
    double r[G], c_next = c;
    for (int g = 0; g < G; ++g) r[g] = rec[g];
    if constexpr (Cell::kSecondGates > 0) {
      const double m = Cell::forward_first(x, r, h, saved);
      for (int g = kFirst; g < G; ++g) r[g] += w_m * m;
      *h_next = Cell::forward_second(x, r, h, saved);
    } else {
      *h_next = Cell::forward(x, r, h, c_next, saved);
    }
    return *h_next + (Cell::kCellState ? 0.3 * c_next : 0);
  }

  double loss() const {
    double saved[S + 1], h_next;
    return loss(saved, &h_next);
  }

  // Central differences; their error is of order 1e-10 here.
  double slope(double& variable) {
    const double kept = variable, step = 1e-5;
    variable = kept + step;
    const double above = loss();
    variable = kept - step;
    const double below = loss();
    variable = kept;
    return (above - below) / (2 * step);
  }
};

template <class Cell>
void check_gradients() {
  constexpr int G = Cell::G, S = Cell::S;
  std::mt19937 random(1);
  std::uniform_real_distribution<double> uniform(-2, 2);
  for (int trial = 0; trial < 200; ++trial) {
    Unit<Cell> unit;
    for (int g = 0; g < G; ++g) unit.x[g] = uniform(random), unit.rec[g] = uniform(random);
    unit.h = uniform(random), unit.c = uniform(random);
    if (G == 1 && std::fabs(unit.x[0] + unit.rec[0]) < 1e-3) continue;  // relu's kink
    double saved[S + 1], h_next, dx[G], dr[G], dc = 0.3, dh_prev;
    unit.loss(saved, &h_next);
    if constexpr (Cell::kSecondGates > 0) {
      Cell::backward_second(saved, unit.h, 1., dx, dr);
      double dm = 0;
      for (int g = Unit<Cell>::kFirst; g < G; ++g) dm += unit.w_m * dr[g];
      dh_prev = Cell::backward_first(saved, unit.h, 1., dm, dx, dr);
    } else {
      dh_prev = Cell::backward(saved, h_next, unit.h, unit.c, 1., dc, dx, dr);
    }
    for (int g = 0; g < G; ++g) {
      CHECK(std::fabs(dx[g] - unit.slope(unit.x[g])) < 1e-8, Cell::kName << " dx[" << g << "]");
      CHECK(std::fabs(dr[g] - unit.slope(unit.rec[g])) < 1e-8, Cell::kName << " dr[" << g << "]");
    }
    CHECK(std::fabs(dh_prev - unit.slope(unit.h)) < 1e-8, Cell::kName << " dh");
    if (Cell::kCellState) CHECK(std::fabs(dc - unit.slope(unit.c)) < 1e-8, Cell::kName << " dc");
  }
}

template <class Cell>
void check_equal_parts() {
  if constexpr (!Cell::kSplit && Cell::kSecondGates == 0) {
    double saved[] = {.1, .2, .3, .4, .5, .6, .7, .8}, dx[Cell::G], dr[Cell::G], dc = .9;
    Cell::backward(saved, .3, .2, .1, 1., dc, dx, dr);
    for (int g = 0; g < Cell::G; ++g) CHECK(dx[g] == dr[g], Cell::kName);
  }
}

double logistic(double a) {
  return 1 / (1 + std::exp(-a));
}

}  // namespace

TEST(backward_of_each_cell_is_the_derivative_of_its_forward) {
#define FUSEDNN_CHECK(C) check_gradients<cells::C>();
  FUSEDNN_CELLS(FUSEDNN_CHECK)
#undef FUSEDNN_CHECK
}

TEST(a_cell_that_is_not_split_has_equal_gradients_of_both_parts) {
#define FUSEDNN_CHECK(C) check_equal_parts<cells::C>();
  FUSEDNN_CELLS(FUSEDNN_CHECK)
#undef FUSEDNN_CHECK
}

TEST(lstm_is_torchs_equation) {
  const double x[] = {.1, -.2, .3, .4}, r[] = {.5, .6, -.7, .8};
  double c = .9, saved[5];
  const double h = cells::Lstm::forward(x, r, 0., c, saved);
  const double c_expected = logistic(.4) * .9 + logistic(.6) * std::tanh(-.4);
  CHECK(std::fabs(c - c_expected) < 1e-15, c);
  CHECK(std::fabs(h - logistic(1.2) * std::tanh(c_expected)) < 1e-15, h);
}

TEST(gru_is_torchs_equation) {
  const double x[] = {.1, -.2, .3}, rec[] = {.5, .6, -.7};
  double c = 0, saved[4];
  const double h = cells::Gru::forward(x, rec, .9, c, saved);
  const double r = logistic(.6), z = logistic(.4), n = std::tanh(.3 + r * -.7);
  CHECK(std::fabs(h - ((1 - z) * n + z * .9)) < 1e-15, h);
}

TEST(gru_reset_before_applies_r_before_the_product_and_z_to_the_new_value) {
  const double x[] = {.1, -.2, .3}, rec[] = {.5, .6, -.7};
  double saved[3];
  const double r = logistic(.6), z = logistic(.4), n = std::tanh(.3 - .7);
  CHECK(std::fabs(cells::GruResetBefore::forward_first(x, rec, .9, saved) - r * .9) < 1e-15, "r * h");
  const double h = cells::GruResetBefore::forward_second(x, rec, .9, saved);
  CHECK(std::fabs(h - ((1 - z) * .9 + z * n)) < 1e-15, h);
}

TEST(relu_lets_nan_through_as_torch_does) {
  const double x[] = {NAN}, r[] = {0};
  double c = 0;
  CHECK(std::isnan(cells::RnnRelu::forward(x, r, 0., c, static_cast<double*>(nullptr))), "forward");
}
