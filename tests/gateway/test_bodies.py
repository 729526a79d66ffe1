# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""No body takes more of a worker than its size says: the bodies of bench/gateway_bodies.py, held to a bound.

The figures themselves are printed by the bench, on a machine that has nothing else to do. Here the bounds are wide enough for one that
has, and far below what one unbounded loop takes: a megabyte of members took three seconds and a gigabyte.
"""

from __future__ import annotations

import importlib.util
import sys

import conftest
import pytest
import yaml

spec = importlib.util.spec_from_file_location("gateway_bodies", conftest.ROOT / "bench" / "gateway_bodies.py")
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)

LARGEST = yaml.safe_load((conftest.ROLE / "defaults" / "main.yml").read_text())["gateway_max_body_mib"] << 20
MILLISECONDS = 2 * bench.MILLISECONDS


@pytest.fixture(scope="module")
def one_worker(tree, tmp_path_factory):
    if not sys.platform.startswith("linux"):
        pytest.skip("time and memory of a process are read from /proc")
    made = bench.world(tmp_path_factory.mktemp("bodies"), conftest, gateway_max_body_mib=LARGEST >> 20)
    yield made
    made.stop()


@pytest.mark.parametrize("size", [1 << 16, 1 << 20, LARGEST - 64])
def test_time_and_memory_are_bounded(one_worker, size):
    rows = bench.survey(one_worker, size, seeds=6, times=2)
    slow = [row for row in rows if row["ms"] > MILLISECONDS]
    large = [row for row in rows if row["bytes"] > bench.TIMES * row["size"] + bench.FIXED]
    assert not slow and not large, (slow, large)
    # They were looked at, cut and handed on, or refused: not all one and the same.
    assert {200, 400} <= {row["status"] for row in rows} <= {200, 400, 404}
    assert max(row["bytes"] for row in rows) > size


def test_more_than_the_largest_body_is_not_even_read(one_worker):
    with one_worker.connect() as line:
        head = f"POST /api/chat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {conftest.TOKENS['alice']}\r\nContent-Length: {LARGEST + 1}\r\n\r\n"
        line.sendall(head.encode())
        assert b" 413 " in line.recv(200)


def test_other_streams_run_on_meanwhile(one_worker):
    """Eight of the slowest bodies at once beside a request that is timed: they stall it by their time, and no more."""
    import concurrent.futures
    import time

    worst = [body for name, body in bench.bodies(LARGEST - 64, 0).items() if name.startswith("98%")]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(one_worker.ask, "POST", "/api/chat", worst[number % len(worst)], "alice") for number in range(16)]
        slowest = 0.0
        while not all(one.done() for one in waiting):
            started = time.monotonic()
            assert one_worker.ask("GET", "/api/version", token="alice")[0] == 200
            slowest = max(slowest, time.monotonic() - started)
    assert {one.result()[0] for one in waiting} == {200}
    assert slowest < 5, slowest
