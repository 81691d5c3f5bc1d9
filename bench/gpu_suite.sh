#!/usr/bin/env bash
# Everything that needs a GPU, in shards that end within nine minutes each and write what they find as they go.
#
#   bench/gpu_suite.sh OUT SHARD...     OUT: a folder for results; no SHARD: all of them, in this order
#
#   tests      Python and C++ tests on the GPU
#   sanitizer  compute-sanitizer (memcheck, racecheck, initcheck, synccheck) over the C++ tests
#   floors     what a launch, a barrier and a trip of data cost at least, one JSON object a line
#   ladder     pytest bench: floors and peaks, the rungs, the layers against torch.nn (cuDNN), occupancy
#   duels      pytest bench: all the rest; goes on where the last shard stopped, so call it again while cells are left
#   ncu        Nsight Compute on cells of these results, and on launches of every rung and of attention: time, occupancy,
#              throughput; what it counted joins the results, claims are judged and the report is drawn anew
#
# Needs python3 with torch (CUDA) and what `pip install -e .[bench,test,profile]` brings (transformers apart), nvcc, cmake and
# ninja; no network.
set -uo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//'; exit 2; }
mkdir -p "$1" && OUT=$(cd "$1" && pwd)
shift
[ $# -gt 0 ] || set -- tests sanitizer floors ladder duels ncu
export PYTHONPATH="$PWD/pyext${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
failed=()

# step NAME SECONDS COMMAND...: runs it bounded, output to the terminal and to OUT/NAME.log.
step() {
  local name=$1 limit=$2
  shift 2
  printf '== %s (%ds)\n' "$name" "$SECONDS"
  timeout "$limit" "$@" 2>&1 | tee -a "$OUT/$name.log" | tail -n 15
  local status=${PIPESTATUS[0]}
  [ "$status" -eq 0 ] || { failed+=("$name"); echo "== $name: exit status $status"; }
}

build() {
  local capability
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2> /dev/null | head -n 1 | tr -d .)
  case $capability in 90) capability=90a ;; "") capability=90a ;; esac
  export FUSEDNN_CUDA_ARCHITECTURES=$capability
  step build 300 python3 tools/providers.py cuda
  step build 300 python3 tools/build.py
  step build 60 cmake -S . -B build/gpu -G Ninja -DFUSEDNN_CUDA_ARCH="$capability"
  step build 300 cmake --build build/gpu --target cuda_test_primitives cuda_test_recurrent cuda_run_recurrent cuda_floors
  step build 60 python3 -m fusednn
}

tests() {
  step cpp_tests 60 build/gpu/cuda/test_primitives
  for strategy in step graph gemm block cluster grid; do
    FUSEDNN_TEST_STRATEGY=$strategy step cpp_tests 120 build/gpu/cuda/test_recurrent
  done
  step tests 240 python3 -m pytest tests -m gpu -q --durations=10
  step triton_tests 150 python3 -m pytest tests -k triton -q --durations=10
}

sanitizer() {
  for tool in memcheck racecheck initcheck synccheck; do
    step sanitizer 60 compute-sanitizer --tool "$tool" --error-exitcode 9 build/gpu/cuda/test_primitives
    step sanitizer 70 compute-sanitizer --tool "$tool" --error-exitcode 9 build/gpu/cuda/test_recurrent in_any_batch
  done
}

floors() {
  step floors 120 build/gpu/cuda/floors
  grep '^{' "$OUT/floors.log" > "$OUT/floors.jsonl"
}

# A shard begins no cell after its seconds; the limit is for a cell that hangs.
ladder() {
  step ladder 540 python3 -m pytest bench -k "floors or launch or recurrent or occupancy" --bench-seconds 400 \
    --bench-resume --bench-out "$OUT/report"
}

duels() {
  step duels 540 python3 -m pytest bench --bench-seconds 400 --bench-resume --bench-out "$OUT/report"
}

# ncu NAME TARGET...: counters of a few launches, as a table in OUT/ncu.txt and as CSV in OUT/NAME.csv.
ncu_of() {
  local name=$1
  shift
  echo "# $*" >> "$OUT/ncu.txt"
  timeout 60 python3 -m fusednn profile --tool ncu --launches 4 --out "build/gpu/$name" -- "$@" >> "$OUT/ncu.txt" 2>&1 \
    || failed+=("ncu $name")
  cp "build/gpu/$name/ncu-0.csv" "$OUT/ncu-$name.csv" 2> /dev/null || true
  folders+=("build/gpu/$name")
}

ncu_() {
  local one="--repeat 1 --time 16" folders=()
  for model in LSTM transformer; do # claim 4
    ncu_of "seed-$model" "bench/bench_models.py::test_seed_model[T200-$model-torch.nn]"
  done
  for impl in fusednn torch.nn; do
    ncu_of "layer-$impl" "bench/bench_recurrent.py::test_time[T200-inference-LSTM-$impl]"
  done
  ncu_of attention-layer "bench/bench_attention.py::test_time[T1024-inference-fusednn-triton]"
  for dtype in bfloat16 float32; do
    for strategy in gemm step graph cluster grid; do
      # shellcheck disable=SC2086
      ncu_of "$strategy-$dtype" lstm $one --batch 16 --hidden 512 --dtype $dtype --strategy $strategy --training
    done
    # shellcheck disable=SC2086
    ncu_of "block-$dtype" lstm $one --batch 16 --hidden 64 --dtype $dtype --strategy block --training
  done
  for hidden in 512 1024; do # eight heads of 64 and of 128
    ncu_of "attention-$hidden" attention --repeat 1 --batch 4 --time 4096 --hidden $hidden --dtype bfloat16 --training
  done
  step achieved 120 python3 -m bench.achieved "$OUT/report/results.json" "${folders[@]}"
  (cd "$OUT" && tar czf ncu.tar.gz ncu-*.csv && rm -f ncu-*.csv)
}

build
for shard in "$@"; do
  case $shard in
    tests | sanitizer | floors | ladder | duels) "$shard" ;;
    ncu) ncu_ ;;
    *) echo "no shard '$shard'" >&2; exit 2 ;;
  esac
done
printf '== done (%ds)\n' "$SECONDS"
[ ${#failed[@]} -eq 0 ] || { printf 'failed: %s\n' "${failed[*]}"; exit 1; }
