#!/bin/sh
# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# build.sh OUTDIR [DRIVER_VERSION]: puts the NVML simulator there as libnvidia-ml.so.1.
# Nothing is compiled when OUTDIR already holds the library of this very source, version and compiler.
set -eu

out=${1:?usage: build.sh OUTDIR [DRIVER_VERSION]}
version=${2:-580.126.09}
source=$(dirname "$(readlink -f "$0")")/nvml_sim.c
compiler=${CC:-gcc}
flags="-std=gnu11 -O2 -g0 -fPIC -shared -fvisibility=hidden -Wall -Wextra -Werror -Wl,-soname,libnvidia-ml.so.1"

case $version in
  *[!0-9.]* | '') echo "build.sh: '$version' is no driver version such as 580.126.09" >&2; exit 2 ;;
esac
command -v "$compiler" >/dev/null || {
  echo "build.sh: no C compiler '$compiler'; install gcc, or name one in CC" >&2
  exit 2
}

mkdir -p "$out"
stamp=$({ cat "$source" "${source%sim.c}state.h"; echo "$version $flags"; "$compiler" -dumpfullversion -dumpmachine; } | sha256sum | cut -d' ' -f1)
if [ -f "$out/libnvidia-ml.so.1" ] && [ "$(cat "$out/.nvml-sim.stamp" 2>/dev/null)" = "$stamp" ]; then
  exit 0
fi
# shellcheck disable=SC2086  # the flags are words
"$compiler" $flags -DNVML_SIM_VERSION="\"$version\"" -o "$out/.libnvidia-ml.so.1.$$" "$source" -pthread
mv "$out/.libnvidia-ml.so.1.$$" "$out/libnvidia-ml.so.1"
echo "$stamp" > "$out/.nvml-sim.stamp"
