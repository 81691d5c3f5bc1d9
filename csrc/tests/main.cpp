#include "tests/check.h"

int main(int argc, char** argv) {
  return fusednn::testing::run_all(argc > 1 ? argv[1] : "");
}
