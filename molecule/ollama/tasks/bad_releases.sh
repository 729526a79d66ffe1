#!/usr/bin/env bash
# Copyright (c) 2026, gpufleet.llm maintainers
# SPDX-License-Identifier: GPL-3.0-or-later
# bad_releases.sh MIRROR GOOD SERVICES SERVER: lay releases that are no good beside the good one.
set -euo pipefail
releases=$1/releases good=$2 services=$3 server=$4
archive=ollama-linux-amd64.tar.zst
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# release VERSION [TREE]: make its folder, with an archive of the tree or that of the good one, and a list that names it.
release() {
  mkdir -p "$releases/v$1"
  rm -f "$releases/v$1/"*
  if [ $# -gt 1 ]; then
    tar -C "$2" -cf - . | zstd -q -1 -o "$releases/v$1/$archive"
  else
    cp "$releases/v$good/$archive" "$releases/v$1/$archive"
  fi
  list "$1"
}

list() { (cd "$releases/v$1" && sha256sum "./$archive" > sha256sum.txt); }

release 0.32.90
printf '%064d  ./%s\n' 0 "$archive" > "$releases/v0.32.90/sha256sum.txt"

release 0.32.91
truncate --size=-"$(($(stat -c %s "$releases/v0.32.91/$archive") / 2))" "$releases/v0.32.91/$archive"
list 0.32.91

release 0.32.92

mkdir -p "$work/dead/bin" "$work/dead/lib/ollama"
printf '#!/bin/sh\n[ "$1" != --version ] || { echo "ollama version is 0.32.93"; exit; }\necho "Error: this release does not start" >&2\nexit 1\n' > "$work/dead/bin/ollama"
chmod 755 "$work/dead/bin/ollama"
release 0.32.93 "$work/dead"

# A server that answers, and whose engine does not run. The real one cannot be told to say another version.
if [ "$server" = standin ]; then
  python3 -c 'import sys, pathlib; sys.path.insert(0, sys.argv[1]); import make_mirror; make_mirror.unpack_standin(pathlib.Path(sys.argv[2]), "0.32.94")' \
    "$services" "$work/mute"
  printf '#!/usr/bin/env python3\nraise SystemExit("no engine here")\n' > "$work/engine"
  find "$work/mute" -name llama-server -exec install -m 755 "$work/engine" {} \;
  release 0.32.94 "$work/mute"
fi
