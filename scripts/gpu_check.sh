#!/usr/bin/env bash
# The GPU verification in one command.
#
#   scripts/gpu_check.sh [options] OUT_DIR
#
# Two plans. The first fits one call of 560 s: install and info, operators against the CPU, kernel times in CUDA graphs,
# the GPU tests, racecheck, memcheck. The second builds from source and runs what compiles and trains. Each stage has its
# time limit and its log; one that fails does not stop the next, but for `env`. A stage over its limit is interrupted
# (INT), so that it still says what had failed, and killed 30 s later. After each stage, and at any end but KILL,
# everything is packed into OUT_DIR/gpu_check.tar.gz: logs, rows of the benchmarks, summary.jsonl. Exit status 1 if a stage
# failed or ran out of time, 2 for wrong arguments; a stage whose tool or data is missing is "skipped", with the reason.
#
# Options:
#   --plan first|second  (default first)
#   --stages A,B      only these stages, of any plan or none, in this order
#   --list            print the plans, then each stage with its limit in seconds
#   --budget SECONDS  of all stages together (default 530): each is cut to what is left, skipped with less than 10 s
#   --device cpu      rehearsal without a GPU: what needs one is skipped, the rest runs on the CPU
#   --prepare         on a machine with network and nvcc: fill build/wheels, then exit
#
# build/wheels, which Git ignores, is carried to a machine without network: wheels of what its Python lacks, and one of
# this package, which is then installed instead of building. --prepare makes both for the environment variables
#   PREPARE_TORCH (default 2.11.0), PREPARE_PYTHON (3.12), TORCH_CUDA_ARCH_LIST (9.0), PREPARE_WHEELS (pydantic)
#
# Environment: PYTHON (default python3), which must have torch. CIFAR10_DIR, a folder with the official CIFAR-10 files,
# for the stage cifar10; GPU_CHECK_EPOCHS of its training (default 2).

set -uo pipefail

SELF=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/$(basename "${BASH_SOURCE[0]}")
ROOT=$(dirname "$(dirname "$SELF")")
PYTHON=${PYTHON:-python3}
DEVICE=${GPU_CHECK_DEVICE:-cuda} # set by --device, handed to the stages
WHEELS=$ROOT/build/wheels
SKIPPED=77 # exit status of a stage that says it does not apply
GRACE=30   # seconds from INT to KILL; pytest-xdist needs 10 to 20

FIRST=(env install operators times tests racecheck memcheck)
SECOND=(env build compiled digits cifar10)
declare -A LIMIT=(
  [env]=40 [install]=40 [operators]=40 [times]=90 [tests]=200 [racecheck]=75 [memcheck]=75
  [build]=300 [compiled]=300 [digits]=120 [cifar10]=300
  [sanitizers]=540 [benchmarks]=540 [methods]=540 # in no plan
)

# --- the stages: each runs in its own process, from the repository's root, with the folder for results as $1 ----------

skip() {
  echo "skip: $*"
  exit "$SKIPPED"
}

needs_gpu() {
  [[ $DEVICE == cuda ]] || skip "needs a GPU (--device cpu)"
}

# What the package and its tests import; pip's message names what is missing.
dependencies() {
  "$PYTHON" - <<'PYTHON'
import importlib

modules = "numpy pydantic yaml sklearn joblib matplotlib PIL safetensors tqdm pytest pytest_timeout xdist hypothesis"
missing = []
for module in modules.split():
    try:
        importlib.import_module(module)
    except ImportError as error:
        missing.append(str(error))
if missing:
    raise SystemExit("missing: " + "; ".join(missing))
PYTHON
}

stage_env() {
  date -u +%Y-%m-%dT%H:%M:%SZ
  "$PYTHON" -VV
  if ! dependencies; then
    [[ -d $WHEELS ]] || { echo "no wheels are carried in $WHEELS: --prepare makes them"; exit 1; }
    find "$WHEELS" -name '*.whl' ! -name 'ard_fast-*' -print0 |
      xargs -0 -r "$PYTHON" -m pip install --no-index --no-deps
    dependencies || { echo "the wheels in $WHEELS do not have them"; exit 1; }
  fi
  for tool in nvidia-smi "nvcc --version" "compute-sanitizer --version" "c++ --version"; do
    echo "--- $tool"
    # shellcheck disable=SC2086  # the words are the command
    if command -v "${tool%% *}" >/dev/null 2>&1; then $tool; else echo "not on PATH"; fi
  done
  "$PYTHON" -c 'import sys, torch
print("--- torch", torch.__version__, "CUDA", torch.version.cuda, "threads", torch.get_num_threads())
if torch.cuda.is_available():
    print(torch.cuda.get_device_properties(0), "torch archs", *torch.cuda.get_arch_list())
elif sys.argv[1] == "cuda":
    sys.exit("torch sees no CUDA device")' "$DEVICE"
}

# The carried wheel, or a build. On a GPU the compiled kernels must be there and fit.
stage_install() {
  local wheel
  wheel=$(compgen -G "$WHEELS/ard_fast-*.whl" | head -n 1) || true
  if [[ -n $wheel ]]; then
    "$PYTHON" -m pip install --no-index --no-deps --force-reinstall "$wheel"
  else
    stage_build
  fi
  "$PYTHON" -m ard_fast.info
  [[ $DEVICE == cuda ]] || return 0
  "$PYTHON" -c 'from ard_fast.functional._load import load
load().has_cuda_kernels or exit(f"no compiled kernels: {load().cuda_reason}")'
}

stage_build() {
  local cuda=1 # with 1 a missing toolkit is an error, not a CPU-only build
  [[ $DEVICE == cuda ]] || cuda=auto
  NVCC_APPEND_FLAGS=-lineinfo ARD_FAST_CUDA=${ARD_FAST_CUDA:-$cuda} "$PYTHON" -m pip install -v --no-build-isolation --no-deps .
}

# tests ARGUMENT...: pytest behind the command in PREFIX. At least one test must have passed: a run that skips all
# proves nothing. tee outlives the interrupt, so that pytest's summary is kept.
PREFIX=()
tests() {
  local out
  out=$(mktemp)
  "${PREFIX[@]}" "$PYTHON" -m pytest -q -rfE -p no:cacheprovider "$@" 2>&1 | tee -i "$out"
  grep -Eq '(^|[^0-9])[1-9][0-9]* passed' "$out" || { echo "no test passed"; return 1; }
}

stage_operators() {
  needs_gpu
  tests -n 0 tests/ops/test_cuda.py -k "cpu or cuda_graph"
}
stage_tests() {
  needs_gpu
  tests -m gpu tests --ignore tests/ops/test_compile.py
}
stage_compiled() {
  needs_gpu
  tests -m gpu tests/ops/test_compile.py
}

# sanitize TOOL [OPTION...] -- PYTEST ARGUMENT...: under compute-sanitizer.
sanitize() {
  local options=()
  needs_gpu
  command -v compute-sanitizer >/dev/null || skip "compute-sanitizer is not on PATH"
  while [[ $1 != -- ]]; do options+=("$1") && shift; done
  PREFIX=(compute-sanitizer --tool "${options[@]}" --error-exitcode 86 --print-limit 20)
  tests -n 0 -m "sanitizer and gpu" "${@:2}"
}

# Without torch's caching every tensor is an allocation of its own, so a read past its end or before its first write is
# seen. Kernels of the framework must stay instrumented under initcheck: their writes are what initialises memory. Races
# and barriers are judged in our kernels only (namespace ard), which keeps the run short.
OURS=(--kernel-regex kns=_ZN3ard)
stage_racecheck() { sanitize racecheck --racecheck-report all "${OURS[@]}" -- tests/ops/test_cuda.py; }
stage_memcheck() { PYTORCH_NO_CUDA_MEMORY_CACHING=1 sanitize memcheck -- tests/ops/test_cuda.py; }
stage_sanitizers() {
  sanitize racecheck --racecheck-report all "${OURS[@]}" -- tests
  sanitize synccheck "${OURS[@]}" -- tests
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  sanitize memcheck -- tests
  sanitize initcheck -- tests
}

# bench OUT_DIR NAME [OPTION...]
bench() {
  "$PYTHON" "benchmarks/bench_$2.py" --device "$DEVICE" --json "$1/bench_$2_$DEVICE.json" "${@:3}"
}
stage_times() { # without torch.compile, which takes most of the time
  bench "$1" pgd --quick --variants ard,torchattacks,inplace,fused
  bench "$1" kd_loss --quick --variants ard,kl_div,eager,composed,fused
  bench "$1" ops --quick --variants eager,closed,torchattacks,autoattack,mask,torch,layers,foreach,indexing,inplace,fused
}
stage_benchmarks() {
  local name failed=()
  for name in pgd kd_loss ops train attacks; do bench "$1" "$name" || failed+=("$name"); done
  ((${#failed[@]} == 0)) || { echo "failed: ${failed[*]}"; return 1; }
}

ATTACKS=clean,fgsm,pgd20,pgd50-10,cw20,mifgsm,apgd-ce,apgd-dlr,apgd-t

stage_digits() {
  "$PYTHON" -m ard_fast.train --device "$DEVICE" --out "$1/digits"
  "$PYTHON" -m ard_fast.evaluate "$1/digits" --device "$DEVICE" --out "$1/digits_evaluated" --attacks "$ATTACKS"
}

stage_cifar10() {
  [[ -n ${CIFAR10_DIR:-} ]] || skip "CIFAR10_DIR is not set"
  # the teacher is a network's name: it is trained first, adversarially, for as many epochs
  "$PYTHON" -m ard_fast.train --dataset cifar10 --data-dir "$CIFAR10_DIR" --method ard --student mobilenetv2 \
    --teacher resnet18 --epochs "${GPU_CHECK_EPOCHS:-2}" --device "$DEVICE" --out "$1/cifar10"
  "$PYTHON" -m ard_fast.evaluate "$1/cifar10" --data-dir "$CIFAR10_DIR" --device "$DEVICE" --batch-size 1000 \
    --out "$1/cifar10_evaluated" --eps-curve none --attacks "$ATTACKS"
}

# Every method for a few epochs: nothing of it may fail on a GPU.
stage_methods() {
  local methods
  methods=$("$PYTHON" -c 'from ard_fast.methods import METHODS; print(",".join(METHODS))')
  "$PYTHON" -m ard_fast.train --compare-methods "$methods" --compare-seeds 1 --epochs 8 --teacher-epochs 8 \
    --device "$DEVICE" --out "$1/methods"
}

if [[ ${1:-} == --run-stage ]]; then # how the driver below calls itself, under `timeout`
  set -e
  cd "$ROOT"
  "stage_$2" "$3"
  exit 0
fi

# --- the driver ------------------------------------------------------------------------------------------------------

prepare() {
  local venv=$ROOT/build/prepare
  set -e
  mkdir -p "$WHEELS"
  "$PYTHON" -m venv "$venv"
  "$venv/bin/pip" install "torch==${PREPARE_TORCH:-2.11.0}"
  rm -f "$WHEELS"/ard_fast-*.whl
  # The lines of the sources are for compute-sanitizer and ncu.
  NVCC_APPEND_FLAGS=-lineinfo ARD_FAST_CUDA=1 TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0} \
    "$venv/bin/pip" wheel --no-deps -w "$WHEELS" "$ROOT"
  # shellcheck disable=SC2086  # the words are requirements
  "$venv/bin/pip" download --python-version "${PREPARE_PYTHON:-3.12}" --only-binary=:all: -d "$WHEELS" \
    ${PREPARE_WHEELS:-pydantic}
}

die() {
  echo "gpu_check: $*" >&2
  exit 2
}

OUT=
BUDGET=530
SELECTED=("${FIRST[@]}")
while (($#)); do
  case $1 in
    --plan)
      [[ ${2:-} == first || ${2:-} == second ]] || die "--plan: expected first or second, got '${2:-}'"
      declare -n plan=${2^^}
      SELECTED=("${plan[@]}")
      shift 2
      ;;
    --stages)
      [[ -n ${2:-} ]] || die "--stages: expected names separated by commas"
      IFS=, read -r -a SELECTED <<<"$2"
      for name in "${SELECTED[@]}"; do
        [[ -n ${LIMIT[$name]:-} ]] || die "no stage '$name'; stages: ${!LIMIT[*]}"
      done
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
    --list)
      echo "first: ${FIRST[*]}"
      echo "second: ${SECOND[*]}"
      for name in "${!LIMIT[@]}"; do echo "$name ${LIMIT[$name]}"; done | sort
      exit 0
      ;;
    --prepare)
      prepare
      exit 0
      ;;
    -h | --help)
      sed -n '2,/^$/{s/^# \{0,1\}//;p;}' "$SELF"
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
WORK=$(mktemp -d)
export GPU_CHECK_DEVICE=$DEVICE PYTHON
export PYTHONUNBUFFERED=1 # a stage cut off by its limit leaves what it had printed

FAILED=0
CHILD=
SUMMARY=$WORK/summary.jsonl # a line a stage
touch "$SUMMARY"

# The archive of what there is now; no checkpoints, nothing large.
pack() {
  (cd "$WORK" && find . -type f -size -2M ! -name '*.pt' ! -name '*.safetensors' -print0 |
    tar -czf "$OUT/gpu_check.tar.gz" --null -T -)
}

finish() {
  trap '' INT TERM
  trap - EXIT
  echo
  cat "$SUMMARY"
  echo "$FAILED of $(wc -l <"$SUMMARY") stages failed; logs and summary.jsonl in $OUT/gpu_check.tar.gz"
  pack
  rm -rf "$WORK"
  exit "${1:-$((FAILED > 0))}"
}
trap finish EXIT

record() { # record STATUS NOTE: of the stage $name
  case $1 in failed | timeout) FAILED=$((FAILED + 1)) ;; esac
  printf '{"stage": "%s", "status": "%s", "seconds": %d, "note": "%s"}\n' \
    "$name" "$1" $((SECONDS - begin)) "$(tr -d '"\\\000-\037' <<<"$2")" | tee -a "$SUMMARY"
  pack
}

interrupted() {
  trap '' INT TERM
  if [[ -n $CHILD ]]; then # timeout hands it on, and kills after its grace
    kill -INT "$CHILD" 2>/dev/null && wait "$CHILD" 2>/dev/null
    record failed interrupted
  fi
  finish 130
}
trap interrupted INT TERM

SECONDS=0
set -m # else INT is ignored by what runs in the background
for name in "${SELECTED[@]}"; do
  limit=${LIMIT[$name]}
  left=$((BUDGET - SECONDS))
  begin=$SECONDS
  if ((left < 10)); then
    echo "==> $name"
    record skipped "no time left of the budget"
    continue
  fi
  ((left < limit)) && limit=$left
  echo "==> $name (at most $limit s)"
  log=$WORK/$name.log
  timeout -s INT -k "$GRACE" "$limit" bash "$SELF" --run-stage "$name" "$WORK" >"$log" 2>&1 &
  CHILD=$!
  wait "$CHILD"
  status=$?
  CHILD=
  case $status in
    0) record ok "" ;;
    "$SKIPPED") record skipped "$(sed -n 's/^skip: //p' "$log" | tail -n 1)" ;;
    124 | 137)
      record timeout "limit $limit s"
      tail -n 20 "$log" | sed 's/^/    | /'
      ;;
    *)
      record failed "$(grep -m1 '^missing: ' "$log" || echo "exit status $status")"
      tail -n 20 "$log" | sed 's/^/    | /'
      [[ $name != env ]] || break
      ;;
  esac
done
finish
