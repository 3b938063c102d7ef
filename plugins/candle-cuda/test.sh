#!/usr/bin/env bash
# candle-cuda's tests, and those of what it is made of: on the GPU if there is one, on the emulated driver if not. Arguments go to cargo test.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
root=$(realpath "$here/../..")
exports=$("$here/compiler.sh")
eval "$exports"
cd "$root"

if compgen -G "/dev/nvidia[0-9]*" >/dev/null && ldconfig -p | grep -q 'libcuda\.so\.1 '; then
  echo "candle-cuda: TESTS RUN ON THE GPU"
  libraries=$CUDA_HOME/lib64
else
  echo "candle-cuda: NO GPU HERE: TESTS RUN ON THE EMULATED DRIVER (target/emulated)"
  libraries=$root/target/emulated
  "$here/emulated/build.sh" "$libraries"
  # What the emulated driver promises: kernels that break CUDA's rules end with their place.
  "$here/emulated/tests/run.sh" "$libraries"
  export CANDLE_CUDA_EMULATED=1
  # As late as a GPU may be: what is read or written too soon is wrong then.
  export EMULATED_CUDA_LATE=${EMULATED_CUDA_LATE:-1}
fi
# What continuous integration does for the plugins that build everywhere.
"${CARGO:-cargo}" clippy -q -p candle-cuda -p candle-plugin --all-targets -- -D warnings
# Every kernel by itself, against loops in f64.
"$here/tests/kernels/run.sh" "$root/target/kernels" ${CANDLE_CUDA_EMULATED:+"$libraries"}
LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} "${CARGO:-cargo}" test -p candle-cuda -p candle-plugin "$@"
