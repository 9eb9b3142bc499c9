#!/usr/bin/env bash
# How much of the Python and of the C++ the tests reach. Prints the figure and fails below the floor.
#
#   scripts/coverage.sh python    lines and branches, by the default test suite
#   scripts/coverage.sh cpp       lines of the CPU kernels, by the operators' tests, with ASan and UBSan
#
# Needs the extras test and dev. That every CUDA kernel runs is a test of its own: tests/ops/test_kernels.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_NUM_THREADS=1

case ${1:-} in
  python)
    python -m pytest -q --cov --cov-report=
    coverage report --skip-covered --sort=cover --fail-under=95
    ;;
  cpp)
    build=build/variant-sanitized
    rm -rf $build # with the counters of other runs, and of sources that are gone
    # Those that reach the kernels; the others are about torch. Two processes of our own: those of xdist may be ended
    # before the counters are written.
    scripts/variant.sh sanitized bash -ec '
      python -m pytest -q -n 0 tests/ops/test_{losses,starts,crop_flip}.py & others=$!
      python -m pytest -q -n 0 tests/ops/test_{steps,apgd,attack_gradient,layers}.py
      wait $others'
    # Branches are left out: gcc counts one for every operation that may throw. A template's functions are one function.
    gcovr --root $build/tree --filter $build/tree/csrc/ --object-directory $build $build \
      --gcov-ignore-parse-errors=negative_hits.warn --merge-mode-functions=merge-use-line-0 \
      --merge-lines --exclude-throw-branches --fail-under-line 98 --print-summary
    ;;
  *)
    echo "expected python or cpp, got '${1:-}'" >&2
    exit 2
    ;;
esac
