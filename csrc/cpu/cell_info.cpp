#include "cells/registry.h"

#include <cstring>

#include "api.h"
#include "cells/scan.h"

namespace fusednn {
namespace {

#define FUSEDNN_INFO(C) \
  {cells::C::kName, cells::C::G, cells::C::S, cells::C::kCellState, cells::C::kSplit, cells::C::kSecondGates},
constexpr CellInfo kCells[] = {FUSEDNN_CELLS(FUSEDNN_INFO)};
#undef FUSEDNN_INFO

}  // namespace

int cell_count() {
  return static_cast<int>(sizeof(kCells) / sizeof(kCells[0]));
}

const CellInfo& cell_info(int index) {
  return kCells[index];
}

const CellInfo* find_cell(const char* name) {
  for (const CellInfo& cell : kCells) {
    if (std::strcmp(cell.name, name) == 0) return &cell;
  }
  return nullptr;
}

int scan_gates(const char* cell) {
#define FUSEDNN_GATES(C) \
  if (std::strcmp(cell, cells::C::kName) == 0) return cells::C::G;
  FUSEDNN_SCAN_CELLS(FUSEDNN_GATES)
#undef FUSEDNN_GATES
  return 0;
}

}  // namespace fusednn
