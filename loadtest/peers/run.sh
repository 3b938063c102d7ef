#!/usr/bin/env bash
# Crossgate beside what a user could pick instead, in one command.
#
#   loadtest/peers/run.sh [WORKLOAD.jsonl …] [OPTION …]
#
# Without a workload: loadtest/workloads/sample.jsonl. Options:
#
#   --rounds N              interleaved rounds, at least 7                     [7]
#   --requests N            of each workload                                   [24]
#   --engines NAME …        of ort-fp32 ort-int8 ov-fp32 ov-auto ov-int8       [all but ov-auto]
#   --batch-tokens N …      padded tokens of the engines' batches; each engine gets its best  [512]
#   --rho-min RHO           nothing is timed when Crossgate's scores are below [0.9]
#   --crossgate-args TEXT   more flags of crossgate: "--dtype f32 --threads 1"
#   --json FILE             write everything that was measured here
#
# Builds the server, installs the peers into PEERS_DIR (5 GB, because PyTorch brings CUDA; some minutes) and
# makes the benchmark model there; what is there already is kept. These may be named instead:
#
#   PEERS_DIR       where all of it lies                                 [target/peers]
#   PEERS_PYTHON    a Python that has requirements.txt: nothing is installed
#   PEERS_MODEL     a folder that make_model.py made
#   PEERS_INFINITY  the program infinity_emb; `none` leaves the comparison of servers out
set -euo pipefail
# Before anything is installed: the comment above is the help.
for argument in "$@"; do
  case $argument in
    -h | --help) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit ;;
  esac
done
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

PYTHONPATH=$here "$python" -m unittest -q test_figures
cargo build --release -p gateway -p cpu-int8
exec "$python" "$here/duel.py" --crossgate target/release/crossgate --model "$model" \
  ${servers[@]+"${servers[@]}"} "${workloads[@]}" "$@"
