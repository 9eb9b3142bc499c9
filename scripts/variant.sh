#!/usr/bin/env bash
# Runs a command with the CPU kernels compiled in another way, in a copy of the checkout.
#
#   scripts/variant.sh avx2 python -m pytest -n auto        as on a processor without AVX-512; torch is held to the same
#   scripts/variant.sh baseline python -m ard_fast.info     without AVX and AVX2 too
#   scripts/variant.sh sanitized python -m pytest tests/ops    under ASan and UBSan, with gcov's counters, which
#                                                              stay below build/variant-sanitized
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
variant=${1:-}
cxxflags= ldflags=
# MKL looks at the maker of the processor before its instruction sets; MKL_CBWR it obeys everywhere.
case $variant in
  avx2) level=3 held=x86-64-v3 aten=avx2 onednn=AVX2 mkl=AVX2 ;;
  baseline) level=1 held=baseline aten=default onednn=SSE41 mkl=COMPATIBLE ;;
  sanitized)
    level=1
    ldflags="-fsanitize=address,undefined --coverage"
    cxxflags="-O1 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined,float-cast-overflow -fno-sanitize=vptr"
    cxxflags+=" -fno-sanitize-recover=all --coverage"
    ;;
  *) echo "scripts/variant.sh: expected avx2, baseline or sanitized, got '$variant'" >&2; exit 2 ;;
esac
shift
(($# > 0)) || { echo "scripts/variant.sh: no command" >&2; exit 2; }

build=$PWD/build/variant-$variant
rm -rf "$build/tree"
mkdir -p "$build/tree"
git ls-files -z -co --exclude-standard | tar --null -T - --ignore-failed-read -cf - 2>/dev/null | tar -xf - -C "$build/tree"
cd "$build/tree"
# Function clones are resolved before a sanitizer's run time is ready: a level has none.
CXXFLAGS="${CXXFLAGS:-} $cxxflags -DARD_CPU_LEVEL=$level" LDFLAGS="${LDFLAGS:-} $ldflags" ARD_FAST_CUDA=0 \
  python setup.py -q build_ext --inplace --build-temp "$build" >"$build/log" 2>&1 || { cat "$build/log" >&2; exit 1; }
# Code that inductor has cached for one level is wrong under another: half of each vector is left unwritten.
export TORCHINDUCTOR_CACHE_DIR=$build/inductor PYTHONPATH=$PWD
if [[ $variant == sanitized ]]; then
  export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc
  exec env LD_PRELOAD="$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libubsan.so)" "$@"
fi
export ATEN_CPU_CAPABILITY=$aten ONEDNN_MAX_CPU_ISA=$onednn MKL_CBWR=$mkl
got=$(python -c 'import ard_fast.functional, torch; print(torch.ops.ard_fast.simd_level())')
# Nothing passes at another level than was asked for.
[[ $got == "$held" ]] || { echo "asked for $held, but the CPU kernels run as $got on this processor" >&2; exit 1; }
exec "$@"
