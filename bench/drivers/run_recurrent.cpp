// One recurrent sequence without Python, for Nsight Compute, compute-sanitizer and a debugger:
//   run_recurrent --cell lstm --strategy step --dtype bfloat16 --batch 32 --steps 100 --hidden 512 --repeat 10
//   ncu --set full -k regex:step_forward -s 5 -c 1 run_recurrent --cell lstm
// Runs forward and backward on random tensors, compares with the CPU's kernels, and prints the median times. Compiled
// as CUDA it runs on the GPU, else in the emulation; the kernels are the same.
#include <getopt.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "tests/check.h"
#include "tests/device.h"
#include "tests/problem.h"

namespace {

using namespace fusednn;
using namespace fusednn::testing;

constexpr const char* kDtypes[] = {"float64", "float32", "bfloat16", "float16"};

struct Options {
  std::string cell = "lstm", strategy = "step";
  Dtype dtype = Dtype::kFloat32;
  Size size{8, 20, 64, 0, 1};
  int repeat = 5;
  bool tf32 = false;
};

[[noreturn]] void usage(const std::string& wrong) {
  if (!wrong.empty()) std::fprintf(stderr, "run_recurrent: %s\n", wrong.c_str());
  std::string cells;
  for_each_cell([&](const CellInfo& cell) { cells += std::string(cells.empty() ? "" : "|") + cell.name; });
  std::fprintf(stderr,
               "usage: run_recurrent [--cell %s] [--strategy step|gemm|block|cluster|grid]\n"
               "       [--dtype float64|float32|bfloat16|float16]\n"
               "       [--batch B] [--steps T] [--hidden H] [--directions 1|2] [--repeat N] [--tf32]\n",
               cells.c_str());
  std::exit(2);
}

long positive(const char* text) {
  char* end;
  const long value = std::strtol(text, &end, 10);
  if (*end != '\0' || value < 1) usage(std::string("expected a positive number, got ") + text);
  return value;
}

Dtype dtype_named(const std::string& name) {
  for (int i = 0; i < 4; ++i) {
    if (name == kDtypes[i]) return static_cast<Dtype>(i);
  }
  usage("no dtype '" + name + "'");
}

Options parse(int argc, char** argv) {
  const option known[] = {{"cell", required_argument, nullptr, 'c'},
                          {"strategy", required_argument, nullptr, 's'},
                          {"dtype", required_argument, nullptr, 'd'},
                          {"batch", required_argument, nullptr, 'b'},
                          {"steps", required_argument, nullptr, 't'},
                          {"hidden", required_argument, nullptr, 'h'},
                          {"directions", required_argument, nullptr, 'n'},
                          {"repeat", required_argument, nullptr, 'r'},
                          {"tf32", no_argument, nullptr, 'f'},
                          {}};
  Options o;
  for (int found; (found = getopt_long(argc, argv, "", known, nullptr)) != -1;) {
    switch (found) {
      case 'c':
        o.cell = optarg;
        break;
      case 's':
        o.strategy = optarg;
        break;
      case 'd':
        o.dtype = dtype_named(optarg);
        break;
      case 'b':
        o.size.batch = positive(optarg);
        break;
      case 't':
        o.size.steps = positive(optarg);
        break;
      case 'h':
        o.size.hidden = positive(optarg);
        break;
      case 'n':
        o.size.directions = positive(optarg);
        break;
      case 'r':
        o.repeat = static_cast<int>(positive(optarg));
        break;
      case 'f':
        o.tf32 = true;
        break;
      default:
        usage("");
    }
  }
  if (optind < argc) usage(std::string("what is '") + argv[optind] + "'?");
  if (find_cell(o.cell.c_str()) == nullptr) usage("no cell '" + o.cell + "'");
  if (o.size.directions > 2) usage("there are 1 or 2 directions");
  return o;
}

double error_of(const Values& got, const Values& expected) {
  double error = 0, largest = 1e-30;
  for (size_t i = 0; i < got.size(); ++i) {
    if (!(std::fabs(got[i] - expected[i]) <= error)) error = std::fabs(got[i] - expected[i]);
    largest = std::max(largest, std::fabs(expected[i]));
  }
  return error / largest;
}

// Runs a call some times; its median time in microseconds.
template <class Call>
double median_us(Call& call, int repeat) {
  std::vector<double> times;
  for (int i = 0; i < repeat; ++i) {
    times.push_back(seconds([&] {
      call.run();
      if (!kGpu) finish();  // in the emulation the last launch waits for somebody to read
    }));
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] * 1e6;
}

void print(const char* what, double us, double error, const Options& o) {
  std::printf("%-9s %12.2f us, %9.3f us a step, largest difference from the CPU's kernels %.2g of the largest value\n",
              what, us, us / static_cast<double>(o.size.steps), error);
}

int run(const Options& o) {
  const CellInfo& cell = *find_cell(o.cell.c_str());
  const Problem p = make_problem(o.size, cell, o.dtype, 1);
  allow_tf32(o.tf32);
  ForwardCall forward(p, cell, o.dtype, 1, true, o.strategy.c_str()), expected(p, cell, o.dtype, 1, true, nullptr);
  const double forward_us = median_us(forward, o.repeat);
  expected.run();
  const Outputs out = forward.read(), truth = expected.read();
  BackwardCall backward(p, truth, cell, o.dtype, 1, o.strategy.c_str()), back(p, truth, cell, o.dtype, 1, nullptr);
  const double backward_us = median_us(backward, o.repeat);
  back.run();
  std::printf("%s, %s, %s%s, %s, on %s\n", cell.name, o.strategy.c_str(), kDtypes[static_cast<int>(o.dtype)],
              o.tf32 ? " with TF32" : "", text(o.size).c_str(), kGpu ? "the GPU" : "the emulation");
  const double forward_error = error_of(out.y, truth.y),
               backward_error = error_of(backward.read().d_gates, back.read().d_gates);
  print("forward", forward_us, forward_error, o);
  print("backward", backward_us, backward_error, o);
  const double eps[] = {0x1p-52, 0x1p-23, 0x1p-7, 0x1p-10};
  const double allowed = 100 * (o.tf32 && o.dtype == Dtype::kFloat32 ? 0x1p-11 : eps[static_cast<int>(o.dtype)]);
  const bool right = forward_error < allowed && backward_error < allowed && failures() == 0;
  if (!right) std::printf("WRONG\n");
  return right ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  try {
    return run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "run_recurrent: %s\n", error.what());
    return 1;
  }
}
