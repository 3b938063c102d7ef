#!/usr/bin/env bash
# Runs this crate's tests for aarch64 in qemu, on CPUs with i8mm, with only dotprod, and with neither.
# No aarch64 standard library comes with rustup here, so rustc is Debian's: a trixie chroot with backports'
# rustc and its arm64 library. First use takes about five minutes and 2 GB, later ones what changed.
set -euo pipefail
cd "$(dirname "$0")/../../.."
root=${TEST_NEON_ROOT:-/var/tmp/crossgate-neon}
target=aarch64-unknown-linux-gnu

cannot() {
  echo "test-neon: cannot run here: $*" >&2
  exit 1
}
[ "$(uname -s)" = Linux ] || cannot "it needs Linux and a Debian chroot; on an aarch64 machine run cargo test -p cpu-int8"
[ "$(id -u)" = 0 ] || cannot "it needs root, for a chroot and its bind mounts"
command -v apt-get >/dev/null || cannot "it needs apt-get, for debootstrap"

if [ ! -e "$root/ready" ]; then
  [ ! -e "$root" ] || cannot "$root was left half made: unmount what is mounted in it and remove it"
  mirror=http://deb.debian.org/debian
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq debootstrap >/dev/null; } || cannot "debootstrap is not to be had"
  debootstrap --variant=minbase --include=ca-certificates trixie "$root" "$mirror" >/dev/null || cannot "no Debian mirror answers"
  echo "deb $mirror trixie-backports main" >"$root/etc/apt/sources.list.d/backports.list"
  cp /etc/resolv.conf /etc/hosts "$root/etc/"
  cp -r /etc/ssl/certs "$root/etc/ssl/"
  mount --bind /proc "$root/proc" || cannot "bind mounts are not allowed"
  install() { chroot "$root" apt-get install -y -qq --no-install-recommends "$@" >/dev/null || cannot "apt-get install $*"; }
  chroot "$root" dpkg --add-architecture arm64
  chroot "$root" apt-get update -qq
  install -t trixie-backports rustc cargo libstd-rust-dev:arm64 gcc libc6-dev
  install qemu-user gcc-aarch64-linux-gnu libc6-dev:arm64
  umount "$root/proc"
  touch "$root/ready"
fi

mkdir -p "$root/project"
mountpoint -q "$root/project" && cannot "another run uses $root, or one was killed: umount $root/project"
mountpoint -q "$root/proc" || mount --bind /proc "$root/proc" || cannot "bind mounts are not allowed"
trap 'umount -l "$root/project" "$root/proc" || true' EXIT
trap 'exit 1' INT TERM
mount --bind "$PWD" "$root/project"

# inside CPU KERNELS ARGS...: cargo test for an emulated CPU that must have these kernels.
inside() {
  local cpu=$1 kernels=$2; shift 2
  echo "== $cpu"
  chroot "$root" env CARGO_HOME=/cargo CARGO_TARGET_DIR=/target CARGO_INCREMENTAL=0 KERNELS_REQUIRED="$kernels" \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu $cpu" \
    sh -c 'cd /project && exec cargo test --locked "$@"' sh -p cpu-int8 --target "$target" "$@"
}
inside max aarch64-i8-neon-smmla,aarch64-i8-neon-sdot,aarch64-f32-neon-fmla \
  --lib --test exact --test golden --test conformance --test errors --test rows --test load --test no_alloc
inside cortex-a76 aarch64-i8-neon-sdot,aarch64-f32-neon-fmla --lib --test exact
inside cortex-a72 aarch64-f32-neon-fmla,scalar-i8 --lib --test exact
