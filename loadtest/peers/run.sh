#!/usr/bin/env bash
# Crossgate beside what a user could pick instead, in one command.
#
#   loadtest/peers/run.sh [WORKLOAD.jsonl …] [duel.py's options …]
#
# Without a workload: loadtest/workloads/sample.jsonl. `run.sh --help` lists the options of duel.py.
#
# Builds the server, installs the peers into PEERS_DIR (5 GB, because PyTorch brings CUDA; some minutes) and
# makes the benchmark model there; what is there already is kept. These may be named instead:
#
#   PEERS_DIR       where all of it lies                                 [target/peers]
#   PEERS_PYTHON    a Python that has requirements.txt: nothing is installed
#   PEERS_MODEL     a folder that make_model.py made
#   PEERS_INFINITY  the program infinity_emb; `none` leaves the comparison of servers out
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
dir=${PEERS_DIR:-target/peers}
sample=loadtest/workloads/sample.jsonl

# What stands before the first option are workloads.
workloads=()
while [[ $# -gt 0 && $1 != -* ]]; do
  [[ -r $1 ]] || { echo "run.sh: there is no workload $1; give a file with a request a line" >&2; exit 2; }
  workloads+=("$1")
  shift
done
[[ ${#workloads[@]} -gt 0 ]] || workloads=("$sample")

# install VENV REQUIREMENTS: a virtual environment, whole or not there.
install() {
  [[ -e $1/whole ]] && return
  echo "installing $(basename "$2") into $1: some minutes" >&2
  python3 -m venv "$1"
  "$1/bin/pip" install -q -r "$2" || {
    echo "run.sh: the peers do not install; name a Python that has $2 with PEERS_PYTHON" >&2
    exit 1
  }
  touch "$1/whole"
}

python=${PEERS_PYTHON:-}
if [[ -z $python ]]; then
  install "$dir/venv" "$here/requirements.txt"
  python=$dir/venv/bin/python
fi
# Its own environment: it wants older versions of what the engines use.
infinity=${PEERS_INFINITY:-}
if [[ -z $infinity ]]; then
  install "$dir/infinity" "$here/requirements-infinity.txt"
  infinity=$dir/infinity/bin/infinity_emb
fi
servers=(--infinity "$infinity")
[[ $infinity != none ]] || servers=()

model=${PEERS_MODEL:-$dir/model}
if [[ ! -e $model/openvino/int8.xml ]]; then
  echo "making the benchmark model in $model, calibrated on ${workloads[0]}" >&2
  "$python" "$here/make_model.py" "$model" --calibrate "${workloads[0]}" >&2
fi

(cd "$here" && "$python" -m unittest -q test_figures)
cargo build --release -p gateway -p cpu-int8
exec "$python" "$here/duel.py" --crossgate target/release/crossgate --model "$model" \
  ${servers[@]+"${servers[@]}"} "${workloads[@]}" "$@"
