#!/usr/bin/env bash
# Lints, and so type-checks, for Macs with Apple's processors what a Mac builds, on a Linux machine too: nothing is linked or
# run. The plugins that only a Mac tests are checked with their tests, the others without.
#
#   plugins/candle-metal/check.sh
#
# It needs rustup, which fetches Apple's standard library, and Python: some crates bring C, which is compiled although
# nothing links it, by zig's compiler, because that has Apple's headers (a wheel from PyPI, 90 MB and 440 MB unpacked, into target/zig).
# The first run takes some minutes. On a Mac it is cargo clippy itself.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=aarch64-apple-darwin
for_target=()

cannot() {
  echo "check-macos: cannot run here: $*" >&2
  exit 1
}

if [[ $(uname -s) != Darwin ]]; then
  for_target=(--target "$target")
  command -v rustup >/dev/null || cannot "it needs rustup, for the standard library of $target"
  if ! rustup target list --installed | grep -qx "$target"; then
    rustup target add "$target" || cannot "rustup fetches no standard library of $target; a Mac has one"
  fi
  zig=$PWD/target/zig
  if [[ ! -e $zig/ready ]]; then
    rm -rf "$zig"
    { "${PYTHON:-python3}" -m venv "$zig" && "$zig/bin/pip" install -q ziglang==0.17.1; } ||
      cannot "zig's wheel is not installed; \`python3 -m pip --version\` says whether there is a pip"
    # zig has a name of its own for the target, and takes neither clang's nor Apple's options.
    printf '#!/bin/sh\nexec "%s" -m ziglang cc -target aarch64-macos "$@"\n' "$zig/bin/python" >"$zig/cc"
    chmod +x "$zig/cc"
    touch "$zig/ready"
  fi
  export CC_aarch64_apple_darwin=$zig/cc CXX_aarch64_apple_darwin=$zig/cc AR_aarch64_apple_darwin=ar
  # Else the crate cc adds clang's options for the target.
  export CRATE_CC_NO_DEFAULTS=1
fi

lint() {
  echo "== ${for_target[*]:-this Mac}: $*"
  "${CARGO:-cargo}" clippy --locked ${for_target[@]+"${for_target[@]}"} "$@" -- -D warnings
}
lint --all-targets -p candle-metal -p ort-coreml
lint -p backend-api -p cpu-int8 -p gateway
