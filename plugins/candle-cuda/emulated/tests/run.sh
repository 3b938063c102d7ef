#!/usr/bin/env bash
# Runs the kernels that keep CUDA's rules and those that break them, in several orders of a block's threads; and work and graphs
# that are done at once and late.
#
#   run.sh OUT   the folder that build.sh has built
set -euo pipefail
here=$(dirname "$(realpath "$0")")
out=$(realpath "${1:?the folder of the emulated driver}")
# Beside the driver's own, so that it does not load these kernels.
work=$out/rules
mkdir -p "$work"
"$here/../build.sh" "$work" "$here"/{rules,graphs}.cu
"${CXX:-g++}" -std=c++17 -O1 -Wall -Wextra -isystem "$CUDA_HOME/include" -o "$work/rules" "$here/rules.cc" -L "$work" -lemulated -ldl \
  -Wl,-rpath,"$work"
for order in forward reverse 1; do
  echo "rules, threads in the order '$order'"
  EMULATED_CUDA_ORDER=$order "$work/rules" "$work/tests-rules.kernels.so"
done

# driven NAME SOURCES..: a program that calls the driver.
driven() {
  local name=$1
  shift
  "${CXX:-g++}" -std=c++17 -O1 -Wall -Wextra -isystem "$CUDA_HOME/include" -o "$work/$name" "$@" -L "$out" -l:libcuda.so.1 \
    -l:libcublas.so.13 -ldl -pthread -Wl,-rpath,"$out" -Wl,-rpath-link,"$out"
}
driven late "$here/late.cc"
driven graphs "$here"/{graphs,captures,machine}.cc
for late in 0 1; do
  echo "late: $late"
  EMULATED_CUDA_LATE=$late "$work/late"
  echo "graphs, late: $late"
  EMULATED_CUDA_LATE=$late "$work/graphs" "$work/tests-graphs.kernels.so"
done
