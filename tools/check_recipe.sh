#!/usr/bin/env bash
# Apply the add-a-cell recipe for real: copy the checkout, apply the patch that adds a minimal gated unit in four files,
# build, and run every test that the registry yields for the new cell. Fails where a test file does not pick it up.
set -euo pipefail
export FUSEDNN_OPTIMIZE=-O0
cd "$(dirname "$0")/.."
copy="$PWD/build/recipe"
rm -rf "$copy" && mkdir -p "$copy"
git ls-files -z | tar --null -T - -c | tar -x -C "$copy"
cd "$copy"
git init -q . && git apply --check tests/recipe/minimal_gated_unit.patch && git apply tests/recipe/minimal_gated_unit.patch
[ "$(git apply --numstat tests/recipe/minimal_gated_unit.patch | wc -l)" = 4 ] || { echo "the recipe is four files"; exit 1; }
python tools/build.py
python tools/providers.py emulated
# The new cell alone, from this copy rather than the installed package.
PYTHONPATH="$copy/pyext" python -m pytest tests/test_recurrent_*.py tests/test_operators.py tests/test_whole_pytorch.py \
  tests/test_tools.py tests/test_cuda_kernels.py -q -p no:cacheprovider -m "not slow" \
  -k "(mgu or registry) and not machine_code" | tee build/recipe.log
files="test_recurrent_numerics test_recurrent_autograd test_operators test_whole_pytorch test_tools test_cuda_kernels"
PYTHONPATH="$copy/pyext" python -m pytest $(printf 'tests/%s.py ' $files) --collect-only -q -p no:cacheprovider -k mgu > build/collected.log
for file in $files; do
  found=$(grep -c "^tests/$file.py::.*mgu" build/collected.log || true)
  [ "$found" -gt 0 ] || { echo "$file did not pick the new cell up"; exit 1; }
  echo "$file: $found tests of the new cell"
done
PYTHONPATH="$copy/pyext" python -m fusednn explain mgu --batch 1 --time 10 --hidden 16
