#!/usr/bin/env bash
# How much of the Python and of the C++ the tests reach. Prints both figures and fails below the floors.
#
#   scripts/coverage.sh                 run the tests for both (about 15 minutes on two cores), then report
#   scripts/coverage.sh python          the default test suite
#   scripts/coverage.sh cpp             the C++ tests with ASan and UBSan, built in build/coverage: the maths, the CPU
#                                       loops and, on the host emulator, the CUDA kernels
#   scripts/coverage.sh python-report   only report what `pytest --cov` left in .coverage
#   scripts/coverage.sh cpp-report DIR  only report what tests built in DIR with CXXFLAGS=--coverage LDFLAGS=--coverage left
#
# Needs the extras test and dev. What only a GPU reaches counts as not reached.
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
  CXXFLAGS=--coverage LDFLAGS=--coverage cmake --preset address -B build/coverage --log-level=WARNING
  cmake --build build/coverage
  ctest --test-dir build/coverage --output-on-failure --quiet
}

cpp_report() { # cpp_report DIR
  echo "== C++, lines"
  # Branches are left out: gcc counts one for every operation that may throw. A template's functions are one function.
  gcovr --root . --filter csrc/core/ --filter csrc/cpu/ --filter csrc/cuda/ --object-directory "$1" "$1" \
    --exclude-directories ".*CompilerIdCXX.*" --gcov-ignore-parse-errors=negative_hits.warn --merge-mode-functions=merge-use-line-0 \
    --exclude-throw-branches --fail-under-line "$CPP_FLOOR" --print-summary
}

case ${1:-both} in
  both)
    python_tests
    cpp_tests
    python_report
    cpp_report build/coverage
    ;;
  python) python_tests && python_report ;;
  cpp) cpp_tests && cpp_report build/coverage ;;
  python-report) python_report ;;
  cpp-report) cpp_report "${2:?the folder of the build}" ;;
  *)
    echo "expected python, cpp, python-report or cpp-report, got $1" >&2
    exit 2
    ;;
esac
