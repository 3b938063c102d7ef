#!/usr/bin/env bash
# Programs of Debian's for tests, without installing them: fetches PACKAGE... and what they need that this
# system lacks, and unpacks all of it below target/debian. No root, nothing in the system changes, and no
# network when everything is there already. What was unpacked runs as
#
#   target/debian/run redis-server --port 0 ...
#
# which looks for programs and libraries there first and replaces itself by the program (its process id is the
# program's). Exit status 3: not a Debian system.
set -euo pipefail
(( $# )) || { echo "usage: $0 PACKAGE..." >&2; exit 2; }
say() { echo "debian.sh: $*"; }

root=$(cd "$(dirname "$0")/.." && pwd)/target/debian
mkdir -p "$root/.have"
wanted=()
for package in "$@"; do
  if [[ -e $root/.have/$package ]]; then say "$package is there: $(<"$root/.have/$package")"; else wanted+=("$package"); fi
done
(( ${#wanted[@]} )) || exit 0
for tool in apt-get dpkg; do
  command -v "$tool" >/dev/null || { say "cannot get ${wanted[*]}: no $tool, so this is not a Debian system" >&2; exit 3; }
done

# Lists and cache of our own: the system's may be missing or old, and only root may refresh them.
mkdir -p "$root"/.apt/{lists,cache,debs}/partial
apt() { apt-get -q -o Dir::State::lists="$root/.apt/lists" -o Dir::Cache="$root/.apt/cache" -o APT::Sandbox::User= "$@"; }
say "reading the package lists"
apt update >"$root/.apt/log" 2>&1 || { cat "$root/.apt/log" >&2; say "apt-get update failed" >&2; exit 1; }

# An installation that is only simulated names what the system lacks: "Inst NAME [OLD] (VERSION ...".
plan=$(apt install --simulate --no-install-recommends "${wanted[@]}")
lacking=$(sed -nE 's/^Inst ([^ ]+) (\[[^]]*\] )?\(([^ ]+) .*/\1=\3/p' <<<"$plan")
for package in $lacking; do
  say "fetching $package"
  (cd "$root/.apt/debs" && apt download "$package" >"$root/.apt/log" 2>&1) || { cat "$root/.apt/log" >&2; exit 1; }
done
for deb in "$root"/.apt/debs/*.deb; do
  [[ -e $deb ]] || break
  dpkg -x "$deb" "$root"
done

cat >"$root/run" <<'RUN'
#!/bin/sh
# Written by deploy/debian.sh: run PROGRAM ARGUMENT... from what is unpacked here, else the system's.
here=$(cd "$(dirname "$0")" && pwd)
for folder in "$here"/usr/lib/*-linux-gnu "$here"/lib/*-linux-gnu "$here"/usr/lib "$here"/lib; do
  [ -d "$folder" ] && LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder
done
export LD_LIBRARY_PATH PATH="$here/usr/sbin:$here/usr/bin:$here/sbin:$here/bin:$PATH"
exec "$@"
RUN
chmod +x "$root/run"
# The marks come last: what was broken off is done again.
for package in "${wanted[@]}"; do
  version=$(sed -n "s/^$package=//p" <<<"$lacking")
  echo "${version:-installed in the system}" >"$root/.have/$package"
  say "$package ${version:-is installed in the system}, below $root"
done
rm -rf "$root/.apt"
