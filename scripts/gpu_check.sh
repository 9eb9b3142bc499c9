#!/usr/bin/env bash
# The GPU verification in one command.
#
#   scripts/gpu_check.sh [options] OUT_DIR
#
# Two plans. The first fits one call of 560 s: install, operators and CUDA graphs against the CPU, kernel times in graphs,
# the GPU tests, racecheck, memcheck, ncu. The second fits one of 240 s: build from source, what compiles, what trains.
# Each stage has its time limit and its log; one that fails does not stop the next, but for `env`. A stage over its limit
# is interrupted (INT), so that it still says what had failed, and killed 30 s later. After each stage, and at any end but
# KILL, everything is packed into OUT_DIR/gpu_check.tar.gz: logs, rows of the benchmarks, summary.jsonl. Exit status 1 if a
# stage failed or ran out of time, 2 for wrong arguments; a stage whose tool or data is missing is "skipped".
#
# Options:
#   --plan first|second  (default first)
#   --stages A,B      only these stages, of any plan or none, in this order
#   --list            print the plans, then each stage with its limit in seconds
#   --budget SECONDS  of all stages together (default 530, second plan 210): each is cut to what is left
#   --dry-run         no GPU needed: tests are collected, benchmarks read their options, the training is tiny
#   --prepare         on a machine with network and nvcc: fill build/wheels, then exit
#
# build/wheels, which Git ignores, is carried to a machine without network: wheels of what its Python lacks, and one of
# this package, which is then installed instead of building. --prepare makes both for the environment variables
# PREPARE_TORCH (default 2.11.0), PREPARE_PYTHON (3.12), TORCH_CUDA_ARCH_LIST (9.0) and PREPARE_WHEELS (pydantic).
#
# Environment: PYTHON (default python3), which must have torch. CIFAR10_DIR, a folder with the official CIFAR-10 files,
# for the stage cifar10; GPU_CHECK_EPOCHS of its training (default 2).

set -uo pipefail

SELF=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/$(basename "${BASH_SOURCE[0]}")
ROOT=$(dirname "$(dirname "$SELF")")
PYTHON=${PYTHON:-python3}
DRY=${GPU_CHECK_DRY:-} # set by --dry-run, handed to the stages
DEVICE=$([[ -n $DRY ]] && echo cpu || echo cuda)
WHEELS=$ROOT/build/wheels
SKIPPED=77 # exit status of a stage that says it does not apply
GRACE=30   # seconds from INT to KILL; pytest-xdist needs 10 to 20

FIRST=(env install operators times tests graphs racecheck memcheck ncu)
SECOND=(env build compiled digits)
# The limits of a plan add up to no more than its budget, which is its call's time without GRACE.
declare -A BUDGETS=([first]=530 [second]=210) LIMIT=(
  [env]=30 [install]=25 [operators]=45 [times]=85 [tests]=110 [graphs]=80 [racecheck]=60 [memcheck]=50 [ncu]=45
  [build]=85 [compiled]=60 [digits]=35
  [cifar10]=300 [sanitizers]=530 [benchmarks]=530 # in no plan
)

# --- the stages: each runs in its own process, from the repository's root, with the folder for results as $1 ----------

PIP=("$PYTHON" -m pip install --no-deps ${DRY:+--dry-run})

skip() {
  echo "skip: $*"
  exit "$SKIPPED"
}

needs() {
  [[ -n $DRY ]] || command -v "$1" >/dev/null || skip "$1 is not on PATH"
}

# What the package and its tests import; pip's message names what is missing.
dependencies() {
  "$PYTHON" -c 'import importlib, sys
missing = []
for module in sys.argv[1:]:
    try:
        importlib.import_module(module)
    except ImportError as error:
        missing.append(str(error))
sys.exit("missing: " + "; ".join(missing) if missing else 0)' \
    numpy pydantic yaml sklearn joblib matplotlib PIL safetensors tqdm pytest pytest_timeout xdist hypothesis
}

stage_env() {
  date -u +%Y-%m-%dT%H:%M:%SZ
  "$PYTHON" -VV
  if ! dependencies; then
    [[ -d $WHEELS ]] || { echo "no wheels are carried in $WHEELS: --prepare makes them"; exit 1; }
    find "$WHEELS" -name '*.whl' ! -name 'ard_fast-*' -print0 | xargs -0 -r "${PIP[@]}" --no-index
    dependencies || { echo "the wheels in $WHEELS do not have them"; exit 1; }
  fi
  for tool in nvidia-smi "nvcc --version" "compute-sanitizer --version" "ncu --version" "c++ --version"; do
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

build() { # with 1 a missing toolkit is an error, not a CPU-only build
  NVCC_APPEND_FLAGS=-lineinfo ARD_FAST_CUDA=${ARD_FAST_CUDA:-1} "${PIP[@]}" -v --no-build-isolation .
}

install_carried() { "${PIP[@]}" --no-index --force-reinstall "$WHEELS"/ard_fast-*.whl; }

# The carried wheel, or a build. On a GPU the compiled kernels must be there and fit.
stage_install() {
  if compgen -G "$WHEELS/ard_fast-*.whl" >/dev/null; then install_carried; else build; fi
  "$PYTHON" -m ard_fast.info
  [[ -n $DRY ]] || "$PYTHON" -c 'from ard_fast.functional._load import load
load().has_cuda_kernels or exit(f"no compiled kernels: {load().cuda_reason}")'
}
stage_build() {
  build || { install_carried && false; } # the next stages need a package
}

# tests ARGUMENT...: pytest behind the command in PREFIX. At least one test must have passed: a run that skips all
# proves nothing. tee outlives the interrupt, so that pytest's summary is kept. A dry run collects what a GPU would run.
PREFIX=()
PARALLEL=(-n 12 --maxprocesses 12)
tests() {
  local out command=("${PREFIX[@]}" "$PYTHON" -m pytest -q -rfE -p no:cacheprovider "$@") proof="passed"
  out=$(mktemp)
  if [[ -n $DRY ]]; then
    echo "+ ${command[*]}"
    command=("$PYTHON" -c 'import sys, pytest, torch
torch.cuda.is_available = lambda: True
sys.exit(pytest.main(sys.argv[1:]))' -q -p no:cacheprovider "$@" --collect-only -n 0)
    proof="(/[0-9]+)? tests? collected"
  fi
  "${command[@]}" 2>&1 | tee -i "$out"
  grep -Eq "(^|[^0-9])[1-9][0-9]* ?$proof" "$out" || { echo "no test passed"; return 1; }
}

# bench NAME OPTION...: one benchmark behind PREFIX; `none_failed` after all of them. A dry run hides the GPU, so that it
# ends once it has read its options.
WRONG=()
bench() {
  local command=("${PREFIX[@]}" "$PYTHON" "benchmarks/bench_$1.py" --device cuda "${@:2}") said
  echo "+ ${command[*]}"
  if [[ -n $DRY ]]; then
    said=$(CUDA_VISIBLE_DEVICES='' "${command[@]:${#PREFIX[@]}}" 2>&1)
    echo "$said"
    [[ $said == *"torch sees no CUDA device"* ]]
  else
    "${command[@]}"
  fi || WRONG+=("$1")
}
none_failed() { ((${#WRONG[@]} == 0)) || { echo "failed: ${WRONG[*]}"; return 1; }; }

# The truth before breadth: every operator against the CPU and in a graph, rows of C = 6144, which reach the limit of
# shared memory, a captured attack and a captured training step.
OPERATORS=tests/ops/test_cuda.py
stage_operators() {
  tests -n 0 "$OPERATORS"::test_{every_operator_gives_what_the_cpu_gives,cpu_and_cuda_agree_over_whole_samples} \
    "$OPERATORS"::test_{rows_of_about_48_kib_give_what_the_cpu_gives,every_operator_in_a_cuda_graph} \
    "$OPERATORS"::test_cuda_graph_of_{a_whole_attack_and_loss,restarts_over_whole_samples,an_apgd_run} \
    'tests/attacks/test_graphed_attacks.py::test_equals_the_attack[cuda-pgd]' \
    'tests/training/test_graph.py::test_a_cuda_graph_gives_the_eager_bits[ard]'
}
stage_times() { # rows are written case by case, so that the limit leaves the first ones; torch.compile takes too long
  bench pgd --json "$1/bench_pgd_cuda.json" --quick --cases cifar-128,imagenet-128 \
    --variants ard,torchattacks,inplace,cupy,fused
  bench kd_loss --json "$1/bench_kd_loss_cuda.json" --quick --variants ard,kl_div,eager,composed,fused \
    --cases c10-128,c100-128,c1000-4096,c32000-128,trades-c10-128,mart-c10-128,rslad-c10-128
  bench ops --json "$1/bench_ops_cuda.json" --quick --variants eager,closed,torch,layers,indexing,inplace,fused \
    --cases ce-c10-128,ce-c1000-4096,l2-cifar-128,l2-imagenet-128,mifgsm-imagenet-128,start-imagenet-128,\
apgd-linf-imagenet-128,apgd-l2-imagenet-128,augment-cifar-128,augment-imagenet-128,norm-resnet18-512,fold-mobilenetv2
  none_failed
}

GRAPHS=(tests/training/test_{graph,train,nonfinite}.py tests/attacks/test_graphed_attacks.py)
COMPILED=(tests/training/test_distributed.py tests/ops/test_compile.py)
stage_tests() {
  local others=("${GRAPHS[@]}" "${COMPILED[@]}")
  tests "${PARALLEL[@]}" -m gpu tests "${others[@]/#/--ignore=}"
}
stage_graphs() { tests "${PARALLEL[@]}" -m gpu "${GRAPHS[@]}"; }
stage_compiled() { tests "${PARALLEL[@]}" -m gpu "${COMPILED[@]}"; }

# sanitize TOOL [OPTION...] -- PYTEST ARGUMENT...: under compute-sanitizer.
sanitize() {
  local options=()
  needs compute-sanitizer
  while [[ $1 != -- ]]; do options+=("$1") && shift; done
  PREFIX=(compute-sanitizer --tool "${options[@]}" --error-exitcode 86 --print-limit 20)
  tests -n 0 -m "sanitizer and gpu" "${@:2}"
}

# Without torch's caching every tensor is an allocation of its own, so a read past its end or before its first write is
# seen. Only initcheck needs the framework's kernels, whose writes initialise memory; ours are in the namespace ard.
OURS=(--kernel-regex kns=_ZN3ard)
stage_racecheck() { sanitize racecheck --racecheck-report all "${OURS[@]}" -- "$OPERATORS"; }
stage_memcheck() { PYTORCH_NO_CUDA_MEMORY_CACHING=1 sanitize memcheck "${OURS[@]}" -- "$OPERATORS"; }
stage_sanitizers() {
  sanitize racecheck --racecheck-report all "${OURS[@]}" -- tests
  sanitize synccheck "${OURS[@]}" -- tests
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  sanitize memcheck "${OURS[@]}" -- tests
  sanitize initcheck -- tests
}

# The first kernels of ours that a benchmark starts: step, loss with its gradient, gradient of an attack's loss.
stage_ncu() {
  local once=(--rounds 1 --min-sample-ms 0.1 --variants fused)
  needs ncu
  PREFIX=(ncu --clock-control none --set detailed --section WarpStateStats --launch-count 3
    --kernel-name-base mangled --kernel-name regex:^_ZN3ard)
  bench pgd "${once[@]}" --cases imagenet-128 --dtypes fp32
  bench kd_loss "${once[@]}" --cases c1000-4096 --dtypes fp32
  bench kd_loss "${once[@]}" --cases c1000-4096 --dtypes bf16
  bench ops "${once[@]}" --cases ce-c1000-4096 --dtypes fp32
  none_failed
}

stage_benchmarks() {
  local name
  for name in pgd kd_loss ops train attacks; do bench "$name" --json "$1/bench_${name}_cuda.json"; done
  none_failed
}

ATTACKS=clean,fgsm,pgd20,pgd50-10,cw20,mifgsm,apgd-ce,apgd-dlr,apgd-t

stage_digits() {
  "$PYTHON" -m ard_fast.train --method ard --device "$DEVICE" ${DRY:+--subset=64 --epochs=1 --teacher-epochs=1} \
    --out "$1/digits"
  "$PYTHON" -m ard_fast.evaluate "$1/digits" --device "$DEVICE" --out "$1/digits_evaluated" --attacks "$ATTACKS" \
    ${DRY:+--n-examples=10 --eps-curve=none}
}

stage_cifar10() {
  [[ -n ${CIFAR10_DIR:-} ]] || skip "CIFAR10_DIR is not set"
  # the teacher is a network's name: it is trained first, adversarially, for as many epochs
  "$PYTHON" -m ard_fast.train --dataset cifar10 --data-dir "$CIFAR10_DIR" --method ard --student mobilenetv2 \
    --teacher resnet18 --epochs "${GPU_CHECK_EPOCHS:-2}" --device "$DEVICE" --out "$1/cifar10"
  "$PYTHON" -m ard_fast.evaluate "$1/cifar10" --data-dir "$CIFAR10_DIR" --device "$DEVICE" --batch-size 1000 \
    --out "$1/cifar10_evaluated" --eps-curve none --attacks "$ATTACKS"
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
PLAN=first
BUDGET=
SELECTED=()
while (($#)); do
  case $1 in
    --plan)
      [[ ${2:-} == first || ${2:-} == second ]] || die "--plan: expected first or second, got '${2:-}'"
      PLAN=$2
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
    --dry-run)
      DRY=1
      shift
      ;;
    --list)
      echo "first, ${BUDGETS[first]} s: ${FIRST[*]}"
      echo "second, ${BUDGETS[second]} s: ${SECOND[*]}"
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
declare -n plan=${PLAN^^}
((${#SELECTED[@]} > 0)) || SELECTED=("${plan[@]}")
BUDGET=${BUDGET:-${BUDGETS[$PLAN]}}
[[ -z $DRY ]] || for name in "${!LIMIT[@]}"; do LIMIT[$name]=600 BUDGET=3600; done # any machine is fast enough
mkdir -p "$OUT" || die "cannot make $OUT"
OUT=$(cd "$OUT" && pwd)
WORK=$(mktemp -d)
export GPU_CHECK_DRY=$DRY PYTHON
export PYTHONUNBUFFERED=1 # a stage cut off by its limit leaves what it had printed

FAILED=0
CHILD=
SUMMARY=$WORK/summary.jsonl # a line a stage
touch "$SUMMARY"

# The archive of what there is now; no checkpoints, nothing large.
pack() {
  (cd "$WORK" && find . -type f -size -8192k ! -name '*.pt' ! -name '*.safetensors' -print0 |
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
