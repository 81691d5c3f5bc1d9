#include "api.h"
#include "cells/philox.h"
#include "cpu/team.h"

namespace fusednn {
namespace {

// One query of one head: word j % 4 of counter (j / 4, i, head, 0) decides on key j.
void keep_row(const DropoutKeep& args, int64_t row) {
  const int64_t queries = args.end_query - args.first_query, keys = args.end_key - args.first_key;
  const auto i = static_cast<uint32_t>(args.first_query + row % queries);
  const auto head = static_cast<uint32_t>(args.heads[row / queries]);
  bool* keep = args.keep + row * keys - args.first_key;
  for (int64_t group = args.first_key / 4; group * 4 < args.end_key; ++group) {
    const cells::Words drawn =
        cells::philox({{static_cast<uint32_t>(group), i, head, 0}}, static_cast<uint64_t>(args.seed));
    for (int64_t j = group * 4; j < group * 4 + 4; ++j) {
      if (j >= args.first_key && j < args.end_key) keep[j] = drawn.word[j % 4] >= args.limit;
    }
  }
}

}  // namespace

void dropout_keep(const DropoutKeep& args) {
  cpu::run_team(
      args.threads,
      [](void* context, int thread, int threads) {
        const DropoutKeep& a = *static_cast<DropoutKeep*>(context);
        const int64_t rows = a.count * (a.end_query - a.first_query);
        for (int64_t row = rows * thread / threads; row < rows * (thread + 1) / threads; ++row) keep_row(a, row);
      },
      const_cast<DropoutKeep*>(&args));
}

}  // namespace fusednn
