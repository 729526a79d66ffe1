# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated card: what processes hold, and what the state file says of it."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

REPO = pathlib.Path(__file__).resolve().parents[3]
SCRIPT = REPO / "lab/nvml/lab_card.py"


def load():
    spec = importlib.util.spec_from_file_location("lab_card", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lab_card = load()


def test_private_mappings_of_dev_zero_are_vram():
    text = (
        "7f0000000000-7f0040000000 ---p 00000000 00:06 4                          /dev/zero\n"
        "7f1000000000-7f1000400000 ---p 00001000 00:06 4                          /dev/zero\n"
        "7f2000000000-7f2040000000 rw-s 00000000 00:01 5                          /dev/zero\n"
        "7f3000000000-7f3040000000 rw-p 00000000 00:00 0 \n"
    )
    assert lab_card.parse_maps(text) == [(0x7F0000000000, 1024, 0), (0x7F1000000000, 4, 1)]


def test_a_comm_may_hold_anything():
    fields = " ".join(str(number) for number in range(4, 53))
    assert lab_card.parse_stat(f"12 (a) b (c) S {fields}")[:2] == ("a) b (c", 22)


def test_a_mapping_takes_the_first_card_with_room_and_stays_there():
    cards = [24210, 24210]
    first = lab_card.place({"a": (20000, 0)}, cards, {})
    assert first == {"a": 0}
    both = lab_card.place({"a": (20000, 0), "b": (20000, 0)}, cards, first)
    assert both == {"a": 0, "b": 1}
    # The first is gone; the second does not move.
    assert lab_card.place({"b": (20000, 0)}, cards, both) == {"b": 1}
    assert lab_card.place({"c": (100, 1)}, cards, {}) == {"c": 1}
    assert lab_card.place({"d": (99999, 0)}, cards, {}) == {"d": 0}
    assert lab_card.place({"e": (1, 7)}, cards, {}) == {"e": 1}
    assert lab_card.place({"f": (1, 0)}, [], {}) == {}


@pytest.mark.parametrize(
    "faults",
    [
        {"lost": True},
        {"init_error": True},
        {"init_error": "18"},
        {"gpu0.lost": 1},
        {"gpu0.throttle": ["hot"]},
        {"gpux.lost": True},
    ],
)
def test_faults_that_there_are_not(faults):
    with pytest.raises(lab_card.CardError):
        lab_card.load_card(json.dumps({"faults": faults}))


@pytest.mark.parametrize("text", ["{", "[]", '{"gpus": 3}', '{"gpus": [1]}', '{"faults": 1}'])
def test_a_card_that_is_none(text):
    with pytest.raises(lab_card.CardError):
        lab_card.load_card(text)


def lines(card, seen=(((), 0),)):
    return lab_card.render(lab_card.load_card(json.dumps(card)), seen, 77)


def test_the_shipped_card_is_the_default():
    shipped = json.loads((SCRIPT.parent / "card-4090.json").read_text())
    assert lines(shipped) == lines({})
    assert {"total 24564", "reserved 354", "capability 8 9", "driver 580.126.09", "range 150000 600000"} <= set(lines({}))


def test_what_faults_write():
    held = [([(11, 5000), (12, 100)], 40)]
    assert {"used 5141", "process 11 5000", "process 12 100"} <= set(lines({}, held))
    assert {"used 5141", "process 11 -"} <= set(lines({"faults": {"gpu0.hide_processes": True}}, held))
    assert {"used 11141", "process 77 6000"} <= set(lines({"faults": {"gpu0.tenant_mib": 6000}}, held))
    trapped = lines({"faults": {"gpu0.trapped_mib": 3000}}, held)
    assert "used 8141" in trapped
    assert [line for line in trapped if line.startswith("process")] == ["process 11 5000", "process 12 100"]
    assert "used 24210" in lines({"faults": {"gpu0.trapped_mib": 99999}})
    hot = lines({"faults": {"gpu0.throttle": ["hw_thermal_slowdown", "hw_slowdown"], "gpu0.temperature_c": 91}})
    assert {"throttle 0x48", "temperature 91"} <= set(hot)
    assert {"init 18", "lost 1"} <= set(lines({"faults": {"init_error": 18, "gpu0.lost": True}}))
    two = lines({"faults": {"gpus": 2}}, [((), 0), ((), 0)])
    assert two.count("gpu") == 2
    assert len({line for line in two if line.startswith(("uuid", "pci "))}) == 4
    assert "gpu" not in lines({"faults": {"gpus": 0}}, [])


class Daemon:
    def __init__(self, folder):
        self.state = folder / "run/state"
        self.card = folder / "card.json"
        self.environment = dict(os.environ, NVML_SIM_CARD_FILE=str(self.card), NVML_SIM_STATE=str(self.state))
        self.process = self.start("run")

    def start(self, *words):
        return subprocess.Popen([sys.executable, "-I", SCRIPT, *words], env=self.environment, stdout=subprocess.PIPE, text=True)

    def set(self, *words):
        return subprocess.run([sys.executable, "-I", SCRIPT, *words], env=self.environment, capture_output=True, text=True, check=False)

    def lines(self):
        return self.state.read_text().splitlines()

    def await_line(self, wanted, there=True):
        deadline = time.monotonic() + 10
        while not self.state.exists() or (wanted in self.lines()) != there:
            assert time.monotonic() < deadline, f"{wanted!r} is {'not ' if there else ''}in {self.lines()}"
            time.sleep(0.02)


@pytest.fixture
def daemon(tmp_path):
    running = Daemon(tmp_path)
    yield running
    running.process.send_signal(signal.SIGTERM)
    running.process.communicate(timeout=10)


def test_vram_is_what_living_processes_hold(daemon):
    holder = daemon.start("hold", "4321")
    assert holder.stdout.readline() == f"{holder.pid} holds 4321 MiB\n"
    daemon.await_line(f"process {holder.pid} 4321")
    holder.kill()
    holder.communicate()
    daemon.await_line(f"process {holder.pid} 4321", there=False)


def test_set_returns_when_the_change_shows(daemon):
    assert daemon.set("set", "gpu0.lost=true", "init_error=18").returncode == 0
    assert {"lost 1", "init 18"} <= set(daemon.lines())
    assert daemon.set("set", "gpu0.lost=null").returncode == 0
    assert "lost 1" not in daemon.lines()
    assert "init 18" in daemon.lines()
    wrong = daemon.set("set", "gpu0.lost=yes")
    assert wrong.returncode == 1
    assert "gpu0.lost='yes' is no bool" in wrong.stderr
    assert daemon.set("clear").returncode == 0
    assert "init 0" in daemon.lines()


def test_a_broken_card_file_leaves_the_card_as_it_was(daemon):
    assert daemon.set("set", "gpus=2").returncode == 0
    before = daemon.lines()[1:]
    daemon.card.write_text("{")
    time.sleep(2 * lab_card.PERIOD_S)
    assert [line for line in daemon.lines()[1:] if line.startswith(("gpu", "uuid"))] == [line for line in before if line.startswith(("gpu", "uuid"))]
    assert daemon.process.poll() is None


def test_what_a_process_holds_is_read_again_when_its_size_changes(tmp_path):
    folder = tmp_path / "10"
    folder.mkdir()

    def process(size, start, maps):
        (folder / "stat").write_text(f"10 (runner) S {'0 ' * 18}{start} {size} 100 0\n")
        (folder / "maps").write_text(maps)

    held = "7f0000000000-7f0040000000 ---p 00000000 00:06 4                          /dev/zero\n"
    watcher = lab_card.Watcher(str(tmp_path))
    process(1000, 5, "")
    assert watcher.look([24210]) == [([], 0)]
    process(1000, 5, held)  # of the same size: not looked at
    assert watcher.look([24210]) == [([], 0)]
    process(2000, 5, held)
    assert watcher.look([24210]) == [([(10, 1024)], 0)]
    process(2000, 9, "")  # another process that got the same pid
    assert watcher.look([24210]) == [([], 0)]


def test_what_connections_hold_is_shown_at_their_other_end(tmp_path):
    """A /proc of a card service with three connections, two runners and somebody else; the ledger is the service's own."""
    proc, ledger = tmp_path / "proc", tmp_path / "ledger"

    def process(pid, comm, start, size=1000, sockets=()):
        folder = proc / str(pid)
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "fd").mkdir(parents=True)
        (folder / "stat").write_text(f"{pid} ({comm}) S {'0 ' * 18}{start} {size} 0 0\n")
        (folder / "maps").write_text("")
        for number, inode in enumerate(sockets):
            (folder / "fd" / str(number)).symlink_to(f"socket:[{inode}]")

    def connections(*entries):
        raw = [lab_card.LEDGER_ENTRY.pack(pid, port, *(mib * lab_card.MIB for mib in held), *[0] * (8 - len(held))) for pid, port, held in entries]
        ledger.write_bytes(b"".join(raw) + bytes(lab_card.LEDGER_ENTRY.size))

    (proc / "net").mkdir(parents=True)
    lines = ["  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"]
    for port, inode in ((40001, 901), (40002, 902), (40003, 903)):
        lines.append(f"   0: 0100007F:{port:04X} 0100007F:C384 01 00000000:00000000 00:00000000 00000000  999        0 {inode} 1 0 20 4 30 10 -1")
        lines.append(f"   1: 0100007F:C384 0100007F:{port:04X} 01 00000000:00000000 00:00000000 00000000 65534        0 {inode + 50} 1 0 20 4 30 10 -1")
    (proc / "net/tcp").write_text("\n".join(lines) + "\n")
    watcher, nobody = lab_card.Watcher(str(proc), str(ledger)), ([], 0)
    assert watcher.look([24210, 24210]) == [nobody, nobody], "no ledger, no connections"
    process(20, "ggml-rpc-server", 5)
    process(21, "ggml-rpc-server", 11)
    process(22, "ggml-rpc-server", 12)
    process(40, "llama-server", 8, sockets=[7, 902])
    process(50, "llama-server", 9, sockets=[901])
    connections((21, 40001, (1000, 0)), (22, 40002, (300, 2000)))
    assert watcher.look([24210, 24210]) == [([(40, 300), (50, 1000)], 0), ([(40, 2000)], 0)]
    connections((21, 40001, (1500, 0)), (22, 40002, (300, 2000)))
    assert watcher.look([24210]) == [([(40, 300), (50, 1500)], 0)], "a card that is not built in has no line"

    process(50, "llama-server", 30, sockets=[])
    assert watcher.look([24210, 24210]) == [([(40, 300)], 1500), ([(40, 2000)], 0)], "another process that got the pid"
    process(22, "ggml-rpc-server", 12, size=0)
    assert watcher.look([24210, 24210]) == [([], 1500), nobody], "a zombie holds nothing"
    connections((21, 40001, (0, 0)))
    assert watcher.look([24210, 24210]) == [nobody, nobody]
    ledger.write_bytes(ledger.read_bytes() + b"half an entry")
    assert watcher.look([24210, 24210]) == [nobody, nobody]
