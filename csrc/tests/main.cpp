#include "tests/check.h"

int main() {
  return fusednn::testing::run_all();
}
