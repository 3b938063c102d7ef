#!/usr/bin/env bash
# Checks every kernel of plugins/candle/kernels against plain loops in f64.
#
#   run.sh OUT [DRIVER]   builds in the folder OUT; DRIVER is the folder of the libcuda.so.1 to run on, the system's without
#
# Needs nvcc and g++, and of a CUDA toolkit $CUDA_HOME. The emulated driver has its own copy of the kernels: it must be built
# from the same sources.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
kernels=$(realpath "$here/../../../candle/kernels")
out=$(realpath -m "${1:?a folder to build into}")
driver=${2:-}
: "${CUDA_HOME:?the folder of a CUDA toolkit}"
mkdir -p "$out"

# newer TARGET SOURCE..: whether TARGET is there and newer than every source.
newer() {
  local target=$1 source
  shift
  for source; do [ "$target" -nt "$source" ] || return 1; done
}

# The least of the chips that the kernels are for: what it understands the newer ones do.
ptx=()
for source in "$kernels"/*.cu; do
  target="$out/$(basename "$source" .cu).ptx"
  ptx+=("$target")
  newer "$target" "$source" "$kernels"/*.h || "$CUDA_HOME/bin/nvcc" -std=c++17 -arch=compute_80 -ptx -o "$target" "$source"
done

library=${driver:+$driver/libcuda.so.1}
newer "$out/kernels" "$here"/* "$kernels"/*.h ||
  "${CXX:-g++}" -std=c++17 -O2 -Wall -Wextra -isystem "$CUDA_HOME/include" -o "$out/kernels" "$here"/*.cc \
    -Wl,--allow-shlib-undefined ${library:--L"$CUDA_HOME/lib/stubs" -lcuda}
LD_LIBRARY_PATH=${driver:+$driver:}${LD_LIBRARY_PATH:-} "$out/kernels" "${ptx[@]}"
