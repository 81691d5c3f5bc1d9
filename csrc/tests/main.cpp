#include "cpu/workspace.h"
#include "tests/check.h"

int main(int argc, char** argv) {
  fusednn::cpu::poisons_workspaces = true;
  return fusednn::testing::run_all(argc > 1 ? argv[1] : "");
}
