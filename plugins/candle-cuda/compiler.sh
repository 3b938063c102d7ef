#!/usr/bin/env bash
# Finds or fetches what builds candle-cuda, and prints what a shell must export for it:
#
#   eval "$(plugins/candle-cuda/compiler.sh)"
#
# A CUDA toolkit that is there is taken: CUDA_HOME's, CUDA_PATH's, that of the nvcc in PATH, or /usr/local/cuda. Without one
# NVIDIA's wheels come from PyPI into target/cuda (1.2 GB): nvcc, headers, and the libraries that the plugin links. No root,
# and nothing in the system changes. Neither needs a GPU.
set -euo pipefail
say() { echo "compiler.sh: $*" >&2; }
root=$(realpath "$(dirname "$0")/../..")

# The wheels' folder has everything that a toolkit's has, once links give it the names that linkers look for.
fetch() {
  local venv=$root/target/cuda cuda library
  if [ ! -f "$venv/complete" ]; then
    say "no CUDA toolkit is here: fetching NVIDIA's wheels into $venv"
    python3 -m venv "$venv"
    # nvcc is two packages and a compiler behind it; the libraries' versions follow their own count.
    "$venv/bin/python3" -m pip install -q --disable-pip-version-check \
      nvidia-cuda-{nvcc,crt,runtime,cccl,nvrtc}'==13.0.*' 'nvidia-nvvm==13.0.*' 'nvidia-cublas==13.*' 'nvidia-curand==10.4.*' >&2
    cuda=$(echo "$venv"/lib/python3*/site-packages/nvidia/cu13)
    for library in "$cuda"/lib/lib*.so.*; do
      [ -e "${library%%.so.*}.so" ] || ln -s "$(basename "$library")" "${library%%.so.*}.so"
    done
    ln -sfn lib "$cuda/lib64"
    touch "$venv/complete"
  fi
  echo "$venv"/lib/python3*/site-packages/nvidia/cu13
}

home=""
on_path=$(command -v nvcc || true)
for candidate in "${CUDA_HOME:-}" "${CUDA_PATH:-}" "${on_path%/bin/nvcc}" /usr/local/cuda; do
  [ -n "$candidate" ] && [ -x "$candidate/bin/nvcc" ] || continue
  home=$candidate
  break
done
[ -n "$home" ] || home=$(fetch)
say "$("$home/bin/nvcc" --version | sed -n 's/^Cuda compilation tools, //p') in $home"

# libcuda.so.1 belongs to the driver. Where none is, the linker gets a library of its name and its functions' names.
stubs=$home/lib64/stubs
if [ ! -e "$stubs/libcuda.so" ]; then
  stubs=$root/target/cuda-stubs
  mkdir -p "$stubs"
  grep -ohE '\bcu[A-Z][A-Za-z0-9]*(_v[0-9]+)?\b' "$home/include/cuda.h" | sort -u | sed 's/.*/void &(void) {}/' >"$stubs/cuda.c"
  "${CC:-cc}" -w -shared -Wl,-soname,libcuda.so.1 -o "$stubs/libcuda.so" "$stubs/cuda.c"
fi

# Ampere is the least that the kernels need; its PTX runs on every later GPU.
cat <<END
export CUDA_HOME='$home' CUDA_PATH='$home' CUDA_COMPUTE_CAP='${CUDA_COMPUTE_CAP:-80}'
export PATH='$home/bin':"\$PATH" LIBRARY_PATH='$home/lib64:$stubs'"\${LIBRARY_PATH:+:\$LIBRARY_PATH}"
END
