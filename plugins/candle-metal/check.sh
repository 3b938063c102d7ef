#!/usr/bin/env bash
# Type-checks and lints for Macs with Apple's processors what a Mac builds, on a Linux machine too: nothing is linked or run.
#
#   plugins/candle-metal/check.sh [CRATE ...]       [candle-metal ort-coreml backend-api cpu-int8 gateway]
#
# It needs rustup, which fetches Apple's standard library, and Python: some crates bring C, which is compiled although
# nothing links it, by zig's compiler, because that has Apple's headers (a wheel from PyPI, 90 MB, into target/zig).
# The first run takes some minutes. On a Mac it is cargo clippy itself.
set -euo pipefail
cd "$(dirname "$0")/../.."
crates=("$@")
[[ ${#crates[@]} -gt 0 ]] || crates=(candle-metal ort-coreml backend-api cpu-int8 gateway)
packages=()
for crate in "${crates[@]}"; do packages+=(-p "$crate"); done
# Libraries with candle for a device are built by themselves: beside others its features would be theirs too.
target=aarch64-apple-darwin

if [[ $(uname -s) == Darwin ]]; then
  exec "${CARGO:-cargo}" clippy --locked "${packages[@]}" -- -D warnings
fi

cannot() {
  echo "check-macos: cannot run here: $*" >&2
  exit 1
}
command -v rustup >/dev/null || cannot "it needs rustup, for the standard library of $target"
if ! rustup target list --installed | grep -qx "$target"; then
  rustup target add "$target" || cannot "rustup fetches no standard library of $target; on a Mac there is one"
fi

zig=$PWD/target/zig
if [[ ! -e $zig/ready ]]; then
  rm -rf "$zig"
  "${PYTHON:-python3}" -m venv "$zig" && "$zig/bin/pip" install -q ziglang==0.17.1 || cannot "the wheel of zig does not install"
  # zig names the target in its own way, and takes neither clang's name for it nor Apple's options.
  cat >"$zig/cc" <<CC
#!/bin/sh
exec "$zig/bin/python" -m ziglang cc -target aarch64-macos "\$@"
CC
  chmod +x "$zig/cc"
  touch "$zig/ready"
fi

export CC_aarch64_apple_darwin=$zig/cc CXX_aarch64_apple_darwin=$zig/cc AR_aarch64_apple_darwin=ar
# Without it the crate cc adds clang's options for the target.
export CRATE_CC_NO_DEFAULTS=1
exec "${CARGO:-cargo}" clippy --locked --target "$target" "${packages[@]}" -- -D warnings
