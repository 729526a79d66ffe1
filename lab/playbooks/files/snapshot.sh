#!/bin/bash
# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# One line a thing that is on a host: files with mode, owner, size and time, units, ports. Left out is what a running system
# writes by itself, and the lab's download caches.
set -eu -o pipefail
find / /opt -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /var/tmp -o -path /var/log \
  -o -path /var/cache -o -path /var/lib/apt -o -path /root/.ansible -o -path /var/lib/systemd -o -path /var/lib/dpkg/lock \
  -o -path /var/lib/dpkg/lock-frontend -o -path /etc/ld.so.cache -o -name __pycache__ \) -prune \
  -o -type d -printf '%p d %m %u\n' -o \( -type f -o -type l \) -printf '%p %y %m %u %s %T@ %l\n' | sort -u
systemctl list-unit-files --no-legend --no-pager --plain
ss -tlnH | awk '{print "listens", $4}' | sed '/127.0.0.11:/d'
