#!/usr/bin/env bash
# The whole GPU verification in one command.
#
#   scripts/gpu_check.sh [options] OUT_DIR
#
# Builds and installs the package for the GPU at hand, runs every test, the CUDA tests under compute-sanitizer, the
# benchmarks, ncu on the kernels, a training run, and robust evaluations of what it trained. Each stage has its own time
# limit and its own log, OUT_DIR/STAGE.log; a stage that fails does not stop the next. At the end: a table,
# OUT_DIR/summary.json, and exit status 1 if any stage failed or ran out of time (2 for wrong arguments). A stage whose
# tool or data is missing is "skipped", with the reason.
#
# Options:
#   --stages A,B      only these stages, in the script's order (default: all)
#   --list            print the stages and their time limits in seconds
#   --budget SECONDS  of all stages together: each is cut to what is left, and skipped when less than 10 s are left
#   --limit A=SECONDS another time limit for stage A (may be repeated)
#   --quick           short benchmarks
#   --device cpu      rehearsal without a GPU: what needs one is skipped, the rest runs on the CPU
#
# Environment: PYTHON (default python3), which must have torch and the test dependencies; the peers that bench_attacks
# compares with are optional, benchmarks/_attack_peers.py says how to install them.
#   CIFAR10_DIR        folder with the official CIFAR-10 files, or
#   CIFAR10_ARCHIVE    tar archive with them, for the stages *_cifar10
#   GPU_CHECK_EPOCHS   epochs of train_cifar10 (default 2)
#   GPU_CHECK_TABLE_EPOCHS  epochs of each row of table_cifar10 (default 10)
#   GPU_CHECK_KEEP     folder for what the next call needs again (default build/gpu_check): the unpacked archive, and the
#                      runs of table_cifar10, which then go on
#   GPU_CHECK_EXAMPLES test images that evaluate_cifar10 attacks (default all 10,000); autoattack_cifar10 a tenth of them

set -uo pipefail

SELF=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/$(basename "${BASH_SOURCE[0]}")
ROOT=$(dirname "$(dirname "$SELF")")
PYTHON=${PYTHON:-python3}
DEVICE=${GPU_CHECK_DEVICE:-cuda} # set by --device, handed to the stages
QUICK=${GPU_CHECK_QUICK:-0}      # set by --quick, handed to the stages
KEEP=${GPU_CHECK_KEEP:-$ROOT/build/gpu_check}
SKIPPED=77                       # exit status of a stage that says it does not apply

STAGES=(env build info gpu_tests nvrtc tests memcheck racecheck initcheck synccheck bench_pgd bench_kd_loss bench_steps
  bench_augment bench_fold bench_affine bench_attacks bench_attack_loop bench_train bench_train_compile ceilings ncu
  train methods evaluate train_cifar10 evaluate_cifar10 autoattack_cifar10 table_cifar10)
declare -A LIMIT=(
  [env]=60 [build]=420 [info]=60 [gpu_tests]=300 [nvrtc]=540 [tests]=540
  [memcheck]=300 [racecheck]=300 [initcheck]=300 [synccheck]=300
  [bench_pgd]=420 [bench_kd_loss]=420 [bench_steps]=480 [bench_augment]=300 [bench_attacks]=540
  [bench_fold]=240 [bench_affine]=300 [bench_attack_loop]=300 [bench_train]=570 [bench_train_compile]=540
  [ceilings]=240 [ncu]=300
  [train]=300 [methods]=540 [evaluate]=240 [train_cifar10]=540 [evaluate_cifar10]=540 [autoattack_cifar10]=540
  [table_cifar10]=570
)

# --- the stages: each runs in its own process, from the repository's root, with OUT_DIR as $1 ------------------------

skip() {
  echo "skip: $*"
  exit "$SKIPPED"
}

needs_gpu() {
  [[ $DEVICE == cuda ]] || skip "needs a GPU (--device cpu)"
}

needs_tool() {
  command -v "$1" >/dev/null 2>&1 || skip "$1 is not on PATH"
}

stage_env() {
  date -u +%Y-%m-%dT%H:%M:%SZ
  uname -srm
  "$PYTHON" -VV
  for tool in nvidia-smi "nvcc --version" "compute-sanitizer --version" "ncu --version" "c++ --version"; do
    echo "--- $tool"
    # shellcheck disable=SC2086  # the words are the command
    if command -v "${tool%% *}" >/dev/null 2>&1; then $tool; else echo "not on PATH"; fi
  done
  echo "--- torch"
  "$PYTHON" - "$DEVICE" <<'PYTHON'
import sys
import torch

print("torch", torch.__version__, "CUDA", torch.version.cuda, "threads", torch.get_num_threads())
if torch.cuda.is_available():
    p = torch.cuda.get_device_properties(0)
    print(p.name, f"sm_{p.major}{p.minor}", f"{p.multi_processor_count} SMs", f"{p.total_memory >> 20} MiB",
          f"L2 {p.L2_cache_size >> 20} MiB", "torch archs", *torch.cuda.get_arch_list())
elif sys.argv[1] == "cuda":
    sys.exit("torch sees no CUDA device")
PYTHON
}

stage_build() {
  local cuda=1 # with 1 a missing toolkit is an error, not a CPU-only build
  [[ $DEVICE == cuda ]] || cuda=auto
  ARD_FAST_CUDA=${ARD_FAST_CUDA:-$cuda} "$PYTHON" -m pip install -v --no-build-isolation --no-deps .
}

stage_info() {
  "$PYTHON" -m ard_fast.info
  [[ $DEVICE == cuda ]] || return 0
  "$PYTHON" -c 'from ard_fast._load import load
load().cuda_backend == "compiled" or exit(f"no compiled kernels: {load().cuda_reason}")'
}

# Runs pytest behind an optional prefix command and wants at least one test to have run: a run that skips all proves
# nothing.
run_pytest() {
  local out
  out=$(mktemp)
  "$@" 2>&1 | tee "$out"
  if ! grep -Eq '(^|[^0-9])[1-9][0-9]* passed' "$out"; then
    echo "no test passed"
    rm -f "$out"
    return 1
  fi
  rm -f "$out"
}

stage_gpu_tests() {
  needs_gpu
  run_pytest "$PYTHON" -m pytest -q -rsfE -m gpu tests
}

# The path without nvcc: the same bits, and the GPU tests of the operators on kernels that NVRTC has compiled.
stage_nvrtc() {
  needs_gpu
  run_pytest "$PYTHON" -m pytest -q -rsfE -s tests/test_nvrtc_gpu.py
  export ARD_FAST_CUDA_KERNELS=nvrtc
  "$PYTHON" -m ard_fast.info
  time "$PYTHON" -c 'import ard_fast; print(ard_fast.compile_kernels(), "kernels ready")'
  run_pytest "$PYTHON" -m pytest -q -rsfE -m gpu tests/test_pgd_step.py tests/test_random_start.py \
    tests/test_kd_loss.py tests/test_pair_loss.py tests/test_attack_gradient.py tests/test_pgd_l2_step.py \
    tests/test_apgd_step.py tests/test_crop_flip.py tests/test_fold.py tests/test_affine.py tests/test_cuda_graphs.py
}

stage_tests() {
  run_pytest "$PYTHON" -m pytest -q -rsfE --durations=10 tests
}

# sanitize TOOL [OPTION...]: the tests marked `sanitizer` (tiny shapes, no graph capture) under compute-sanitizer.
sanitize() {
  needs_gpu
  needs_tool compute-sanitizer
  local tool=$1
  shift
  run_pytest compute-sanitizer --tool "$tool" "$@" --error-exitcode 86 --print-limit 20 \
    "$PYTHON" -m pytest -q -rsfE -p no:cacheprovider -m sanitizer tests
}

# Without torch's caching every tensor is an allocation of its own, so a read past its end or before its first write is
# seen. Kernels of the framework must stay instrumented under initcheck: their writes are what initialises memory.
stage_memcheck() { PYTORCH_NO_CUDA_MEMORY_CACHING=1 sanitize memcheck; }
stage_initcheck() { PYTORCH_NO_CUDA_MEMORY_CACHING=1 sanitize initcheck; }
# Races and barriers are judged in our kernels only (namespace ard), which keeps the run short.
stage_racecheck() { sanitize racecheck --racecheck-report all --kernel-regex kns=_ZN3ard; }
stage_synccheck() { sanitize synccheck --kernel-regex kns=_ZN3ard; }

# bench NAME OUT_DIR [OPTION...]
bench() {
  local options=(--device "$DEVICE" --json "$2/$1_$DEVICE.json")
  [[ $QUICK == 1 ]] && options+=(--quick)
  "$PYTHON" "benchmarks/$1.py" "${options[@]}" "${@:3}"
}
stage_bench_pgd() { bench bench_pgd "$1"; }
stage_bench_kd_loss() { bench bench_kd_loss "$1"; }
stage_bench_steps() { bench bench_steps "$1"; }
stage_bench_augment() { bench bench_augment "$1"; }
stage_bench_fold() { bench bench_fold "$1"; }
stage_bench_affine() { bench bench_affine "$1"; }
stage_bench_attacks() {
  "$PYTHON" benchmarks/count_ops.py --json "$1/count_ops.json"
  bench bench_attacks "$1"
}
stage_bench_attack_loop() { bench bench_attack_loop "$1"; }
stage_bench_train() { bench bench_train "$1"; }
# Compiling train and eval mode of each network takes minutes, so it has a stage of its own.
stage_bench_train_compile() {
  local last=overlap
  [[ $DEVICE == cuda ]] || last=fused
  bench bench_train "$1" --json "$1/bench_train_compile_$DEVICE.json" --variants "published,compile,$last"
}

NCU_METRICS=gpu__time_duration.sum,dram__bytes.sum,launch__registers_per_thread
NCU_METRICS+=,dram__throughput.avg.pct_of_peak_sustained_elapsed
NCU_METRICS+=,gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed
NCU_METRICS+=,sm__throughput.avg.pct_of_peak_sustained_elapsed
NCU_METRICS+=,sm__warps_active.avg.pct_of_peak_sustained_active

# profile FILE CASES [OPTION...]: the kernels of profile_kernels.py's cases under ncu. Clocks are left as they are: the
# card may be shared.
profile() {
  LC_ALL=C ncu --csv --metrics "$NCU_METRICS" --nvtx --profile-from-start off --clock-control none "${@:3}" \
    --force-overwrite --log-file "$1" "$PYTHON" benchmarks/profile_kernels.py --device cuda --cases "$2"
}

# Without ncu, or where it may not read the counters, the bounds are judged by graph timings alone. Caches are left as
# they are: short cases lie in the L2.
stage_ceilings() {
  local options=(--device "$DEVICE" --json "$1/ceilings_$DEVICE.json")
  [[ $QUICK == 1 || $DEVICE == cpu ]] && options+=(--quick)
  if [[ $DEVICE == cuda ]] && command -v ncu >/dev/null 2>&1; then
    profile "$1/ceilings_ncu.csv" 'ceiling-*,copy-*' --cache-control none || true
    [[ -f $1/ceilings_ncu.csv ]] && options+=(--ncu "$1/ceilings_ncu.csv")
  fi
  "$PYTHON" benchmarks/ceilings.py "${options[@]}"
}

stage_ncu() {
  needs_gpu
  needs_tool ncu
  local status=0
  profile "$1/ncu.csv" 'step-*,start-*,loss-*,attack-*,augment-*' || status=$?
  if grep -Eq 'ERR_NVGPUCTRPERM|LibraryNotLoaded' "$1/ncu.csv"; then
    grep -Em1 'ERR_NVGPUCTRPERM|LibraryNotLoaded' "$1/ncu.csv"
    skip "ncu may not read the counters of this machine"
  fi
  ((status == 0)) || return "$status"
  "$PYTHON" benchmarks/ncu_summary.py "$1/ncu.csv"
}

stage_train() {
  "$PYTHON" -m ard_fast.train --device "$DEVICE" --out "$1/train_digits"
}

# Every method for a few epochs: nothing of it may fail on a GPU.
stage_methods() {
  local methods
  methods=$("$PYTHON" -c 'from ard_fast.methods import METHODS; print(",".join(METHODS))')
  "$PYTHON" -m ard_fast.train --compare-methods "$methods" --compare-seeds 1 --epochs 8 --teacher-epochs 8 \
    --device "$DEVICE" --out "$1/methods_digits"
}

# evaluate RUN OUT [OPTION...]: accuracy of what an earlier stage trained.
evaluate() {
  [[ -f $1/config.yaml ]] || skip "$(basename "$1") left no network"
  "$PYTHON" -m ard_fast.evaluate "$1" --device "$DEVICE" --out "$2" "${@:3}"
}

ALL_ATTACKS=clean,fgsm,pgd20,pgd20-trades,pgd50-10,cw20,mifgsm,apgd-ce,apgd-dlr,apgd-t

stage_evaluate() {
  evaluate "$1/train_digits" "$1/evaluate_digits" --attacks "$ALL_ATTACKS"
}

# Sets CIFAR10_DIR, by unpacking CIFAR10_ARCHIVE if need be: into one place, where a later call's run finds it again.
need_cifar10() {
  if [[ -z ${CIFAR10_DIR:-} && -n ${CIFAR10_ARCHIVE:-} ]]; then
    local unpacked=$KEEP/cifar10 batch
    if [[ ! -f $unpacked/.complete ]]; then
      mkdir -p "$unpacked"
      tar -xf "$CIFAR10_ARCHIVE" -C "$unpacked"
      touch "$unpacked/.complete"
    fi
    batch=$(find "$unpacked" \( -name data_batch_1 -o -name data_batch_1.bin \) -print -quit)
    [[ -n $batch ]] || { echo "CIFAR10_ARCHIVE: no data_batch_1 or data_batch_1.bin in $CIFAR10_ARCHIVE"; return 1; }
    CIFAR10_DIR=$(dirname "$batch")
  fi
  [[ -n ${CIFAR10_DIR:-} ]] || skip "neither CIFAR10_DIR nor CIFAR10_ARCHIVE is set"
}

stage_train_cifar10() {
  need_cifar10
  # the teacher is a network's name: it is trained first, adversarially, for as many epochs
  "$PYTHON" -m ard_fast.train --dataset cifar10 --data-dir "$CIFAR10_DIR" --method ard --student mobilenetv2 \
    --teacher resnet18 --epochs "${GPU_CHECK_EPOCHS:-2}" --device "$DEVICE" --out "$1/train_cifar10"
}

stage_evaluate_cifar10() {
  need_cifar10
  evaluate "$1/train_cifar10" "$1/evaluate_cifar10" --data-dir "$CIFAR10_DIR" --batch-size 1000 \
    --n-examples "${GPU_CHECK_EXAMPLES:-10000}" --eps-curve none --attacks "$ALL_ATTACKS"
}

stage_autoattack_cifar10() {
  need_cifar10
  "$PYTHON" -c 'import pyautoattack' 2>/dev/null || skip "pyautoattack is not installed"
  local examples=$((${GPU_CHECK_EXAMPLES:-10000} / 10))
  evaluate "$1/train_cifar10" "$1/autoattack_cifar10" --data-dir "$CIFAR10_DIR" --batch-size 1000 \
    --n-examples "$((examples > 0 ? examples : 1))" --eps-curve none --attacks clean,autoattack
}

# The rows of the papers' tables. Saved every half minute, so that a stage cut off by its limit goes on in the next call.
stage_table_cifar10() {
  need_cifar10
  local runs=$KEEP/table status=0
  mkdir -p "$KEEP"
  "$PYTHON" scripts/paper_table.py "$runs" --data-dir "$CIFAR10_DIR" --device "$DEVICE" \
    --epochs "${GPU_CHECK_TABLE_EPOCHS:-10}" --schedule cosine --val-every 5 --save-every-seconds 30 || status=$?
  [[ ! -d $runs ]] || (cd "$KEEP" && find table \( -name '*.json*' -o -name '*.md' -o -name '*.png' -o -name '*.yaml' \) \
    -exec cp --parents {} "$1" \;)
  return "$status"
}

if [[ ${1:-} == --run-stage ]]; then # how the driver below calls itself, under `timeout`
  set -e
  cd "$ROOT"
  "stage_$2" "$3"
  exit 0
fi

# --- the driver ------------------------------------------------------------------------------------------------------

usage() {
  sed -n '2,/^$/{s/^# \{0,1\}//;p;}' "$SELF"
}

die() {
  echo "gpu_check: $*" >&2
  exit 2
}

known() {
  [[ -n $1 && -n ${LIMIT[$1]:-} ]] || die "no stage '$1'; stages: ${STAGES[*]}"
}

OUT=
BUDGET=
SELECTED=("${STAGES[@]}")
while (($#)); do
  case $1 in
    --stages)
      [[ -n ${2:-} ]] || die "--stages: expected names separated by commas"
      IFS=, read -r -a SELECTED <<<"$2"
      for name in "${SELECTED[@]}"; do known "$name"; done
      shift 2
      ;;
    --limit)
      [[ ${2:-} =~ ^([a-z0-9_]+)=([0-9]+)$ ]] || die "--limit: expected STAGE=SECONDS, got '${2:-}'"
      known "${BASH_REMATCH[1]}"
      LIMIT[${BASH_REMATCH[1]}]=${BASH_REMATCH[2]}
      shift 2
      ;;
    --budget)
      [[ ${2:-} =~ ^[0-9]+$ ]] || die "--budget: expected seconds, got '${2:-}'"
      BUDGET=$2
      shift 2
      ;;
    --device)
      [[ ${2:-} == cpu || ${2:-} == cuda ]] || die "--device: expected cpu or cuda, got '${2:-}'"
      DEVICE=$2
      shift 2
      ;;
    --quick)
      QUICK=1
      shift
      ;;
    --list)
      for name in "${STAGES[@]}"; do echo "$name ${LIMIT[$name]}"; done
      exit 0
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    -*) die "no option $1 (--help)" ;;
    *)
      [[ -z $OUT ]] || die "one OUT_DIR, got '$OUT' and '$1'"
      OUT=$1
      shift
      ;;
  esac
done
[[ -n $OUT ]] || die "OUT_DIR is missing (--help)"
mkdir -p "$OUT" || die "cannot make $OUT"
OUT=$(cd "$OUT" && pwd)
export GPU_CHECK_DEVICE=$DEVICE GPU_CHECK_QUICK=$QUICK PYTHON
export PYTHONUNBUFFERED=1 # a stage cut off by its limit leaves what it had printed

NAMES=() STATUSES=() SECONDS_TAKEN=() NOTES=()
CHILD=

now() { date +%s.%N; }

since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }'; }

json_string() { printf '"%s"' "$(printf '%s' "$1" | tr -d '\000-\037' | sed 's/[\\"]/\\&/g')"; }

summary() {
  local i failed=0
  printf '\n%-18s %-8s %8s  %s\n' stage status seconds note
  for i in "${!NAMES[@]}"; do
    printf '%-18s %-8s %8s  %s\n' "${NAMES[$i]}" "${STATUSES[$i]}" "${SECONDS_TAKEN[$i]}" "${NOTES[$i]}"
    case ${STATUSES[$i]} in failed | timeout) failed=$((failed + 1)) ;; esac
  done
  {
    printf '{\n "started": "%s",\n "device": "%s",\n "failed": %d,\n "stages": [' "$STARTED" "$DEVICE" "$failed"
    for i in "${!NAMES[@]}"; do
      ((i)) && printf ','
      printf '\n  {"stage": "%s", "status": "%s", "seconds": %s, "note": %s}' \
        "${NAMES[$i]}" "${STATUSES[$i]}" "${SECONDS_TAKEN[$i]}" "$(json_string "${NOTES[$i]}")"
    done
    printf '\n ]\n}\n'
  } >"$OUT/summary.json"
  echo "$failed of ${#NAMES[@]} stages failed; logs and summary.json in $OUT"
  ((failed == 0))
}

record() { # record STAGE STATUS SECONDS NOTE
  NAMES+=("$1") STATUSES+=("$2") SECONDS_TAKEN+=("$3") NOTES+=("$4")
  echo "    $2 after $3 s${4:+: $4}"
}

interrupted() {
  if [[ -n $CHILD ]]; then
    kill -TERM "$CHILD" 2>/dev/null && wait "$CHILD" 2>/dev/null
    record "$name" failed "$(since "$begin")" interrupted
  fi
  summary
  exit 130
}
trap interrupted INT TERM

STARTED=$(date -u +%Y-%m-%dT%H:%M:%SZ)
BEGIN=$(now)
for name in "${STAGES[@]}"; do
  [[ " ${SELECTED[*]} " == *" $name "* ]] || continue
  limit=${LIMIT[$name]}
  if [[ -n $BUDGET ]]; then
    left=$(awk -v a="$BEGIN" -v b="$(now)" -v c="$BUDGET" 'BEGIN { printf "%d", c - (b - a) }')
    if ((left < 10)); then
      echo "==> $name"
      record "$name" skipped 0 "no time left of the budget"
      continue
    fi
    ((left < limit)) && limit=$left
  fi
  echo "==> $name (at most $limit s)"
  log=$OUT/$name.log
  begin=$(now)
  timeout -k 10 "$limit" bash "$SELF" --run-stage "$name" "$OUT" >"$log" 2>&1 &
  CHILD=$!
  wait "$CHILD"
  status=$?
  CHILD=
  seconds=$(since "$begin")
  case $status in
    0) record "$name" ok "$seconds" "" ;;
    "$SKIPPED") record "$name" skipped "$seconds" "$(sed -n 's/^skip: //p' "$log" | tail -n 1)" ;;
    124 | 137)
      record "$name" timeout "$seconds" "limit $limit s"
      tail -n 20 "$log" | sed 's/^/    | /'
      ;;
    *)
      record "$name" failed "$seconds" "exit status $status"
      tail -n 20 "$log" | sed 's/^/    | /'
      ;;
  esac
done
summary
