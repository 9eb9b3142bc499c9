#!/usr/bin/env bash
# Runs a command as on a processor with less than this one's: in a copy of the checkout whose CPU kernels are compiled up
# to a level of x86-64 only, with torch's libraries held to the same.
#
#   scripts/at_level.sh 3 python -m pytest -n auto      3: AVX2; 1: the baseline, SSE2
#   scripts/at_level.sh 1 python -m ard_fast.info
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
level=${1:-}
# MKL looks at the maker of the processor before its instruction sets; MKL_CBWR it obeys everywhere.
case $level in
  3) held=x86-64-v3 aten=avx2 onednn=AVX2 mkl=AVX2 ;;
  1) held=baseline aten=default onednn=SSE41 mkl=COMPATIBLE ;;
  *) echo "scripts/at_level.sh: level must be 3 or 1, got '$level'" >&2; exit 2 ;;
esac
shift
(($# > 0)) || { echo "scripts/at_level.sh: no command" >&2; exit 2; }

build=$PWD/build/level-$level
rm -rf "$build/tree"
mkdir -p "$build/tree"
git ls-files -z -co --exclude-standard | tar --null -T - --ignore-failed-read -cf - 2>/dev/null | tar -xf - -C "$build/tree"
cd "$build/tree"
CXXFLAGS="${CXXFLAGS:-} -DARD_CPU_LEVEL=$level" ARD_FAST_CUDA=0 \
  python setup.py -q build_ext --inplace --build-temp "$build" >"$build/log" 2>&1 || { cat "$build/log" >&2; exit 1; }
# Code that inductor has cached for one level is wrong under another: half of each vector is left unwritten.
export TORCHINDUCTOR_CACHE_DIR=$build/inductor
export PYTHONPATH=$PWD ATEN_CPU_CAPABILITY=$aten ONEDNN_MAX_CPU_ISA=$onednn MKL_CBWR=$mkl
got=$(python -c 'import ard_fast, torch; print(torch.ops.ard_fast.simd_level())')
# Nothing passes at another level than was asked for.
[[ $got == "$held" ]] || { echo "asked for $held, but the CPU kernels run as $got on this processor" >&2; exit 1; }
exec "$@"
