#!/usr/bin/env bash
# Packs what evidence.py needs on a machine with a GPU that builds nothing and reaches nothing: the server, the load tester,
# the plugin, its golden tests and their models, and the scripts. CUDA's libraries come with that machine's PyTorch.
#
#   plugins/candle-cuda/evidence/bundle.sh [PLUGIN]       [candle-cuda]; candle-cpu, to try the script without a GPU
#
# CUDA_COMPUTE_CAP=90 (or what the GPU has) builds for that one: else the driver compiles for it at the first start.
#
# Writes target/gpu-bundle.tar.xz, and target/gpu-bundle with the same files. There:
#
#   python3 gpu-bundle/evidence/evidence.py gpu-bundle
set -euo pipefail
cd "$(dirname "$0")/../../.."
plugin=${1:-candle-cuda}
target=${CARGO_TARGET_DIR:-target}
out=target/gpu-bundle
# Larger ones are not carried everywhere.
BYTES_MAX=$((60 << 20))

cargo build --release -p gateway -p loadtest
[[ $plugin != candle-cuda ]] || eval "$(plugins/candle-cuda/compiler.sh)"
cargo build --release -p "$plugin"
# cargo says where it puts a test's program.
golden=$(cargo test --release -p "$plugin" --test golden --no-run --message-format=json |
  sed -nE 's/.*"name":"golden".*"executable":"([^"]+)".*/\1/p')
[[ -x $golden ]] || { echo "bundle.sh: cargo names no program of the golden tests" >&2; exit 1; }

rm -rf "$out"
mkdir -p "$out"/bin "$out"/plugins/golden "$out"/evidence
# Their symbols are most of their size.
strip -o "$out/bin/crossgate" "$target/release/crossgate"
strip -o "$out/bin/loadtest" "$target/release/loadtest"
strip -o "$out/bin/lib${plugin//-/_}.so" "$target/release/lib${plugin//-/_}.so"
strip -o "$out/bin/golden" "$golden"
for model in plugins/golden/*/; do cp -r "$model" "$out/plugins/golden/"; done
cp plugins/candle-cuda/evidence/*.py "$out/evidence/"
tar -C target -cJf target/gpu-bundle.tar.xz gpu-bundle
bytes=$(stat -c %s target/gpu-bundle.tar.xz)
echo "target/gpu-bundle.tar.xz: $((bytes >> 20)) MiB"
((bytes <= BYTES_MAX)) || { echo "bundle.sh: it has more than $((BYTES_MAX >> 20)) MiB" >&2; exit 1; }
