#!/usr/bin/env bash
# Builds the emulated CUDA driver: the runner, the libraries that stand in for NVIDIA's, and kernels compiled for the host.
#
#   build.sh OUT             all of it, into the folder OUT
#   build.sh OUT KERNELS..   the runner and, of each folder or .cu file given, libraries of kernels: OUT/FOLDER-FILE.kernels.so
#
# Needs g++ and the headers of a CUDA toolkit in $CUDA_HOME/include. What is newer than its sources is left alone.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
root=$(realpath "$here/../../..")
out=$(realpath -m "${1:?a folder to build into}")
shift
: "${CUDA_HOME:?the folder of a CUDA toolkit: compiler.sh installs one}"
cxx=${CXX:-g++}
common=(-std=c++17 -O2 -g1 -fPIC -march=native -ftls-model=initial-exec -Wall -Wextra -isystem "$CUDA_HOME/include")
[ ! -d "$CUDA_HOME/include/cccl" ] || common+=(-isystem "$CUDA_HOME/include/cccl")
# Indices of arrays and the alignment of vectors are checked; the runner has the functions that this calls.
checks=(-fsanitize=bounds,alignment -fno-sanitize-recover=all)
mkdir -p "$out"

# newer TARGET SOURCE..: whether TARGET is there and newer than every source.
newer() {
  local target=$1 source
  shift
  [ -f "$target" ] || return 1
  for source; do [ "$target" -nt "$source" ] || return 1; done
}

# library NAME SOURCES.. [-- FLAGS..]: a shared library of the host's code.
library() {
  local target=$out/$1 sources=()
  shift
  while [ $# -gt 0 ] && [ "$1" != -- ]; do sources+=("$1"); shift; done
  [ $# -eq 0 ] || shift
  ! newer "$target" "${sources[@]}" "$here"/*/*.h "$here/build.sh" || return 0
  "$cxx" "${common[@]}" -O3 -shared -Wl,-Bsymbolic -Wl,-soname,"$(basename "$target")" -o "$target.new" "${sources[@]}" "$@" -Wl,-rpath,'$ORIGIN'
  mv "$target.new" "$target"
}

# kernels NAME FOLDER SOURCES..: a library of kernels a source, as each is a module of its own on a GPU. The sources are seen
# through links beside the host's device.h, which so takes the place of the one beside them.
kernels() {
  local name=$1 folder=$2 work="$out/$1" source jobs=()
  shift 2
  rm -rf "$work/include" && mkdir -p "$work/include"
  ln -s "$folder"/* "$work/include/"
  [ ! -e "$folder/device.h" ] || ln -sf "$here/shim/device.h" "$work/include/device.h"
  for source; do
    [ "$(jobs -rp | wc -l)" -lt "$(nproc)" ] || wait -n
    kernels_of "$name" "$folder" "$(basename "$source" .cu)" &
    jobs+=($!)
  done
  for source in "${jobs[@]}"; do wait "$source"; done
  # The driver loads all that lies there: kernels whose source is gone must not.
  for source in "$out/$name"-*.kernels.so; do
    local stem=${source##*/"$name"-}
    [ -e "$folder/${stem%.kernels.so}.cu" ] || rm -f "$source"
  done
}

kernels_of() {
  local target="$out/$1-$3.kernels.so" work="$out/$1"
  ! newer "$target" "$2"/*.* "$here"/shim/*.h "$here"/run/{machine,tensor}.h "$out/rewrite" "$here/build.sh" || return 0
  # Macros that kernels are made of keep their line in messages; the toolkit's own warnings are not ours.
  "$cxx" "${common[@]}" -E -x c++ -include "$here/shim/cuda_on_host.h" -I "$here/shim" "$work/include/$3.cu" |
    "$out/rewrite" "$3.cu" >"$work/$3.cc"
  "$cxx" "${common[@]}" "${checks[@]}" -w -c -o "$work/$3.o" "$work/$3.cc"
  "$cxx" -shared -Wl,-Bsymbolic -o "$target.new" "$work/$3.o" -L "$out" -lemulated -Wl,-rpath,'$ORIGIN'
  mv "$target.new" "$target"
}

newer "$out/rewrite" "$here/rewrite.cc" || "$cxx" -std=c++17 -O2 -Wall -Wextra -o "$out/rewrite" "$here/rewrite.cc"
library libemulated.so "$here"/run/*.cc -- -ldl -pthread

if [ $# -gt 0 ]; then
  for what; do
    if [ -d "$what" ]; then kernels "$(basename "$what")" "$(realpath "$what")" "$what"/*.cu
    else kernels "$(basename "$(dirname "$(realpath "$what")")")" "$(realpath "$(dirname "$what")")" "$what"; fi
  done
  exit
fi

# stand_in LIBRARY.so.N HEADER PREFIX SOURCES..: one of NVIDIA's libraries, with its symbols' version. What HEADER has beside
# the sources' functions ends the process with its name.
stand_in() {
  local name=$1 header=$2 prefix=$3 work="$out/stand-ins/$1"
  shift 3
  ! newer "$out/$name" "$@" "$here"/*/*.h "$here/build.sh" || return 0
  mkdir -p "$work"
  rm -f "$work"/*
  (cd "$work" && "$cxx" "${common[@]}" -O3 -c "$@")
  nm --defined-only "$work"/*.o | awk '$2 == "T" { print $3 }' | sort -u >"$work/functions"
  {
    echo 'namespace emulated { [[noreturn]] void missing(const char*); }'
    echo 'extern "C" {'
    grep -ohE "\b${prefix}[A-Z]\w*" $header | grep -vE '_(t|st|enum|v1|flags|info|params)$' | sort -u | comm -23 - "$work/functions" |
      sed 's/.*/void &() { emulated::missing("&"); }/'
    echo '}'
  } >"$work/missing.cc"
  echo "$name { global: *; };" >"$work/versions"
  [ "$name" != libcuda.so.1 ] || echo '{ global: *; };' >"$work/versions"
  "$cxx" "${common[@]}" -w -shared -Wl,-soname,"$name" -Wl,--version-script,"$work/versions" -Wl,-rpath,'$ORIGIN' \
    -o "$out/$name" "$work"/*.o "$work/missing.cc" -L "$out" -lemulated -ldl -pthread
}

include=$CUDA_HOME/include
stand_in libcuda.so.1 "$include/cuda.h" cu "$here"/driver/*.cc
stand_in libcublas.so.13 "$include/cublas_api.h $include/cublas_v2.h" cublas "$here"/blas/{cublas,multiply}.cc
stand_in libcurand.so.10 "$include/curand.h" curand "$here"/blas/curand.cc
stand_in libcudart.so.13 "$include/cuda_runtime_api.h" cuda "$here"/blas/cudart.cc

# candle's own kernels, where cargo keeps their sources, and ours.
candle=$(cargo metadata --manifest-path "$root/plugins/candle-cuda/Cargo.toml" --format-version 1 --locked \
  --filter-platform "$(rustc -vV | sed -n 's/^host: //p')" |
  grep -oE '"manifest_path":"[^"]*/candle-kernels-[^"]*/Cargo.toml"' | head -1 | cut -d'"' -f4)
[ -n "$candle" ] || { echo "build.sh: cargo metadata has no candle-kernels" >&2; exit 1; }
source=$(dirname "$candle")/src
kernels candle "$source" "$source"/{affine,binary,cast,fill,indexing,reduce,sort,ternary,unary}.cu
own=$root/plugins/candle/kernels
[ ! -d "$own" ] || kernels own "$own" "$own"/*.cu
