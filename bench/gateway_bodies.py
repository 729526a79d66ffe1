#!/usr/bin/env python3
# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one body can cost a worker of the gateway: CPU time and memory over hostile bodies of the largest size.

The role's own nginx.conf and JavaScript run with one worker. Time is what the kernel counted for that worker for the whole request: TLS,
reading, looking, handing on. Memory is the worker's peak above what it had before, in bodies. `looking` is the time less that of a body of the
same size that is handed on without being looked at (an upload to Open WebUI).

    bench/gateway_bodies.py [--mib N] [--seeds N] [--write]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time

REPO = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO / ".collections"), str(REPO / "tests" / "gateway")]

MIB = 1 << 20
MILLISECONDS, TIMES, FIXED = 50, 4.1, 8 * MIB  # what is promised: FIXED is what a worker takes for any request

HEAD = b'{"model":"qwen3",'

# What one body may cost, by roles/gateway/files/pin.js.
PIN = (REPO / "roles/gateway/files/pin.js").read_text()
WORK, VALUE, ESCAPE, BLANK = (int(re.search(rf"\b{name} = (\d+)", PIN).group(1)) for name in ("WORK", "VALUE", "ESCAPE", "BLANK"))


def filled(size, start, unit, end):
    """A body of at most `size` bytes: start, as many units as fit, end."""
    return start + unit * ((size - len(start) - len(end)) // len(unit)) + end


def text(size, unit):
    """A body that is one long string of units."""
    return filled(size, HEAD + b'"a":"', unit, b'"}')


def bodies(size, seeds):
    """{name: body}: each a way to make somebody work, and mixtures of them drawn with seeds."""
    made = {
        "plain text": text(size, b"A"),
        "one line break a word": text(size, b"word\\n"),
        "escapes": text(size, b"\\n"),
        "quotes": text(size, b'\\"'),
        "backslashes": text(size, b"\\\\"),
        "unicode escapes": text(size, b"\\u0041"),
        "letters of two bytes": text(size, "é".encode()),
        "letters of three bytes": text(size, "日".encode()),
        "letters of four bytes": text(size, "😀".encode()),
        "letters mixed": text(size, "aé日😀".encode()),
        "members": filled(size, HEAD, b'"k":1,', b'"z":1}'),
        "members that differ": HEAD + b",".join(b'"%d":1' % number for number in range(size // 14)) + b"}",
        "members of options": filled(size, HEAD + b'"options":{', b'"k":1,', b'"z":1}}'),
        "members of a member": filled(size, HEAD + b'"a":{', b'"k":1,', b'"z":1}}'),
        "numbers": filled(size, HEAD + b'"a":[', b"1,", b"1]}"),
        "a long number": filled(size, HEAD + b'"a":', b"1", b"}"),
        "blanks": filled(size, HEAD, b" ", b'"a":1}'),
        "line ends": filled(size, HEAD, b"\n", b'"a":1}'),
        "empty strings": filled(size, HEAD + b'"a":[', b'"",', b'""]}'),
        "short strings with an escape": filled(size, HEAD + b'"a":[', b'"\\n",', b'""]}'),
        "empty lists": filled(size, HEAD + b'"a":[', b"[],", b"[]]}"),
        "empty objects": filled(size, HEAD + b'"a":[', b"{},", b"{}]}"),
        "deep lists": filled(size, HEAD + b'"a":[', b"[" * 98 + b"]" * 98 + b",", b"1]}"),
        "lists that do not end": filled(size, HEAD + b'"a":', b"[", b""),
        "a string that does not end": filled(size, HEAD + b'"a":"', b"A", b""),
        "no UTF-8 at the end": text(size - 1, b"A")[:-2] + b'\xff"}',
        "a control character at the end": text(size - 1, b"A")[:-2] + b'\x01"}',
        "something behind the object": text(size - 1, b"A") + b"x",
        "a long key": HEAD + b'"' + b"k" * (size - 30) + b'":1}',
        "a long model": b'{"model":"' + b"q" * (size - 13) + b'"}',
        "cut at both ends": filled(size, HEAD + b'"keep_alive":0,"options":{"num_ctx":1,"a":"', b"A", b'","num_gpu":1},"shift":true}'),
        "cut in the middle": HEAD
        + b",".join(b'"k%d":"%s","options%d":1' % (one, b"A" * (size // 8), one) for one in range(7))
        + b',"keep_alive":0,"options":{"num_ctx":1,"a":1}}',
        "cut, letters of two bytes": filled(size, HEAD + b'"keep_alive":0,"a":"', "é".encode(), b'","shift":true}'),
    }
    units = [b'"k":1,', b"\\n", b'\\"', "é".encode(), "日".encode(), b"[],", b"{},", b" ", b'"",', b"1,", b'"a":"b",', b"\\u00e9", b"A" * 97]
    for seed in range(seeds):
        pick = random.Random(seed)
        parts, length = [], 0
        start = HEAD + pick.choice([b'"a":"', b'"a":[', b'"options":{', b"", b'"a":[{'])
        while length < size - 100:
            part = pick.choice(units) * pick.choice([1, 3, 1000, 20000])
            part = part[: size - 60 - length]
            parts.append(part)
            length += len(part)
        made[f"mixture {seed}"] = start + b"".join(parts) + pick.choice([b'"}', b"1]}", b'"z":1}}', b"1}", b""])
    # Most of what pin.js looks at of each kind, then text, and members to be cut out at both ends: everything at once.
    start, end = HEAD + b'"keep_alive":0,"a":[', b'"z"],"b":"' + b"A" * (size // 2) + b'","options":{"num_ctx":1}}'
    for name, (unit, cost) in {
        "values": (b"[],", VALUE),
        "escapes": (b'"' + b"\\n" * 99 + b'",', VALUE + 99 * ESCAPE),
        "quotes": (b'"' + b'\\"' * 99 + b'",', VALUE + 99 * ESCAPE),
        "strings": (b'"",', VALUE),
        "blanks": (b" " * 99 + b"1,", VALUE + BLANK * 100),
    }.items():
        for share in (0.5, 0.98):
            front = start + unit * int(WORK * share / cost)
            made[f"{share:.0%} of the work for {name}, cut"] = filled(size, front + b'"', "é".encode(), b'",' + end)
    return made


class Worker:
    """The one worker of a gateway, as the kernel sees it."""

    def __init__(self, gateway):
        master = int((gateway.folder / "run" / "nginx.pid").read_text())
        found = subprocess.run(["pgrep", "-P", str(master)], capture_output=True, text=True, check=True).stdout.split()
        (self.pid,) = [int(one) for one in found]
        self.proc = pathlib.Path(f"/proc/{self.pid}")

    def cpu_ms(self):
        """Milliseconds on a processor so far."""
        return int((self.proc / "schedstat").read_text().split()[0]) / 1e6

    def peak(self, forget=False):
        """Largest resident size in bytes; forget: what it is now counts as the largest."""
        if forget:
            (self.proc / "clear_refs").write_text("5")
        lines = (self.proc / "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def measure(gateway, worker, path, body, token, times=3):
    """{status, ms, bytes}: the least CPU time and the largest peak of so many requests."""
    spent, grown, status = [], [], None
    for _time in range(times):
        before, size = worker.cpu_ms(), worker.peak(forget=True)
        status = gateway.ask("POST", path, body, token)[0]
        time.sleep(0.03)
        spent.append(worker.cpu_ms() - before)
        grown.append(worker.peak() - size)
    return {"status": status, "ms": min(spent), "bytes": max(grown)}


def survey(gateway, size, seeds, times=3):
    """[{name, size, status, ms, looking_ms, bytes}] over all bodies, slowest first."""
    worker = Worker(gateway)
    found = []
    for name, body in bodies(size, seeds).items():
        plain = measure(gateway, worker, "/v1/audio", body, "alice", times)
        row = measure(gateway, worker, "/api/chat", body, "alice", times)
        found.append({"name": name, "size": len(body), **row, "looking_ms": row["ms"] - plain["ms"]})
    return sorted(found, key=lambda row: -row["ms"])


def world(folder, conftest, **settings):
    """A gateway with one worker before servers that read what they get. What it frees goes back to the kernel, so that a peak is seen."""
    os.environ.update(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
    return conftest.Gateway(
        pathlib.Path(folder),
        conftest.packages(),
        workers=1,
        __gateway_ollama=f"127.0.0.1:{conftest.Server('ollama').port}",
        __gateway_open_webui=f"127.0.0.1:{conftest.Server('page').port}",
        **settings,
    ).start()


def table(rows):
    """The rows as text: (body, MiB, status, ms, ms of looking, times its size in memory)."""
    return [
        (row["name"], f"{row['size'] / MIB:.1f}", str(row["status"]), f"{row['ms']:.1f}", f"{row['looking_ms']:.1f}", f"{row['bytes'] / row['size']:.1f}")
        for row in rows
    ]


def write(rows, mib):
    """docs/measurements/gateway_bodies.md: the dozen that cost most."""
    lines = [
        "# What can one body cost the gateway?",
        "",
        f"Made by `bench/gateway_bodies.py --write` on {time.strftime('%Y-%m-%d')}: {len(rows)} hostile bodies of up to {mib} MiB, the largest that is "
        f"taken by default, and the 12 of them that cost most. One worker of the distribution's nginx; load of the machine at the end: "
        f"{os.getloadavg()[0]:.0f} on {os.cpu_count()} cores. Milliseconds are what the kernel counted for the worker, TLS and handing on included; memory "
        "is its peak above what it had before, in sizes of the body.",
        "",
        "| body | MiB | status | ms | of which looking | memory |",
        "|---|---|---|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in table(rows[:12])),
        "",
    ]
    (REPO / "docs/measurements/gateway_bodies.md").write_text("\n".join(lines))


def main():
    """Print the table; exit 1 where a body costs more than is promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--write", action="store_true", help="write docs/measurements/gateway_bodies.md, too")
    args = parser.parse_args()
    spec = importlib.util.spec_from_file_location("gateway_conftest", REPO / "tests/gateway/conftest.py")
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    with tempfile.TemporaryDirectory() as folder:
        gateway = world(folder, conftest, gateway_max_body_mib=args.mib)
        rows = survey(gateway, args.mib * MIB - 64, args.seeds)
        gateway.stop()
    widths = (50, 5, 6, 6, 8, 6)
    for row in [("body", "MiB", "status", "ms", "looking", "memory"), *table(rows)]:
        print(row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:])))
    if args.write:
        write(rows, args.mib)
    return int(any(row["ms"] > MILLISECONDS or row["bytes"] > TIMES * row["size"] + FIXED for row in rows))


if __name__ == "__main__":
    sys.exit(main())
