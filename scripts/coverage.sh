#!/usr/bin/env bash
# How much of the Python and of the C++ the tests reach. Prints both figures and fails below the floors.
#
#   scripts/coverage.sh                 run the tests for both (about 15 minutes on two cores), then report
#   scripts/coverage.sh python          the default test suite
#   scripts/coverage.sh cpp             the CPU kernels under the operators' tests, with ASan and UBSan
#   scripts/coverage.sh python-report   only report what `pytest --cov` left in .coverage
#   scripts/coverage.sh cpp-report      only report what tests under `scripts/variant.sh sanitized` left
#
# Needs the extras test and dev. That every CUDA kernel runs is a test of its own: tests/ops/test_kernels.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# percent of lines and branches (Python), of lines (C++)
PYTHON_FLOOR=95
CPP_FLOOR=98

python_tests() {
  OMP_NUM_THREADS=1 python -m pytest -q -n auto --cov --cov-report=
}

python_report() {
  echo "== Python, lines and branches"
  coverage report --skip-covered --sort=cover --fail-under="$PYTHON_FLOOR"
}

cpp_tests() {
  rm -rf build/variant-sanitized # with the counters of other runs, and of sources that are gone
  OMP_NUM_THREADS=1 scripts/variant.sh sanitized python -m pytest -q -n auto tests/ops -k "not sm_" \
    --ignore tests/ops/test_ops_compiled.py --ignore tests/ops/test_kernels.py
}

cpp_report() {
  echo "== C++, lines"
  local build=build/variant-sanitized
  # Branches are left out: gcc counts one for every operation that may throw. A template's functions are one function.
  gcovr --root $build/tree --filter $build/tree/csrc/ --object-directory $build $build \
    --gcov-ignore-parse-errors=negative_hits.warn --merge-mode-functions=merge-use-line-0 \
    --merge-lines --exclude-throw-branches --fail-under-line "$CPP_FLOOR" --print-summary
}

case ${1:-both} in
  both)
    python_tests
    cpp_tests
    python_report
    cpp_report
    ;;
  python) python_tests && python_report ;;
  cpp) cpp_tests && cpp_report ;;
  python-report) python_report ;;
  cpp-report) cpp_report ;;
  *)
    echo "expected python, cpp, python-report or cpp-report, got $1" >&2
    exit 2
    ;;
esac
