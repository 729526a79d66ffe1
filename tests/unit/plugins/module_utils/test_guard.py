# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard's program: what it reads, its state file, what its privileged part believes."""

from __future__ import annotations

import ctypes
import http.server
import io
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.gpufleet.llm.plugins.module_utils._guard import (
    act,
    actions,
    commands,
    files,
    gpus,
    kernel_log,
    ollama,
    program,
    state,
    tick,
)
from ansible_collections.gpufleet.llm.plugins.module_utils._guard import policy as guard_policy
from ansible_collections.gpufleet.llm.plugins.module_utils._guard.policy import runners
from ansible_collections.gpufleet.llm.plugins.module_utils._host import processes

REPO = pathlib.Path(__file__).resolve().parents[4]
CLOCK = {"wall": 1_800_000_000.0, "mono": 5000.0, "boot": "b1"}
MIB = 1024 * 1024


def later(seconds, **changes):
    return dict(CLOCK, wall=CLOCK["wall"] + seconds, mono=CLOCK["mono"] + seconds, **changes)


# --- the state file ---------------------------------------------------------------------------


def history(**parts):
    return dict(guard_policy.fresh(), clock=100.0, mode="act", **parts)


def test_the_state_comes_back_as_it_was_and_time_goes_on():
    kept = history(spent=[[90.0, "restart"]])
    back, now, step, trouble = state.parse_state(state.dump_state(kept, CLOCK, {}), later(15))
    assert (back, now, step, trouble) == (kept, 115.0, 0.0, None)


@pytest.mark.parametrize("jump", [-86400 * 400, -3600, 3600, 86400 * 400])
def test_a_wall_clock_that_is_set_moves_nothing_within_a_boot(jump):
    clock = dict(later(15), wall=CLOCK["wall"] + 15 + jump)
    _back, now, step, trouble = state.parse_state(state.dump_state(history(), CLOCK, {}), clock)
    assert (now, step, trouble) == (115.0, jump, None)


def test_after_a_reboot_the_wall_clock_counts_and_only_the_budget_is_kept():
    runner = runners._new_runner({"pid": 7, "used_mib": 5}, 90.0)
    streak = {"rule": "trapped", "subject": "x", "count": 3, "since": 60.0, "numbers": {}, "target": None}
    kept = history(spent=[[90.0, "restart"]], runners={"7:7": runner}, streaks={"trapped:x": streak})
    text = state.dump_state(kept, CLOCK, {})
    back, now, _step, trouble = state.parse_state(text, {"wall": CLOCK["wall"] + 600, "mono": 20.0, "boot": "b2"})
    assert (back["spent"], back["runners"], back["streaks"], now, trouble) == (kept["spent"], {}, {}, 700.0, None)
    behind = {"wall": CLOCK["wall"] - 60, "mono": 20.0, "boot": "b2"}
    assert state.parse_state(text, behind)[1::2] == (100.0, None)


def test_a_state_from_the_future_is_not_obeyed():
    clock = {"wall": CLOCK["wall"] - 3600, "mono": 20.0, "boot": "b2"}
    back, _now, _step, trouble = state.parse_state(state.dump_state(history(), CLOCK, {}), clock)
    assert "future" in trouble
    assert back["watch_until"] == 3600


@pytest.mark.parametrize(
    "change",
    [
        {"spent": [[1e9, "restart"]]},
        {"spent": [["soon", "restart"]]},
        {"spent": [[1.0, "rm -rf"]]},
        {"spent": [[float("nan"), "restart"]]},
        {"clock": "late"},
        {"runners": {"1:1": {}}},
        {"streaks": {"x": {"rule": "nonsense"}}},
        {"acts": {"trapped": {"rung": "1", "kind": "restart", "subject": "x", "at": 1.0, "cleared": False}}},
        {"fence": {"since": None}},
        {"mode": 3},
        {"more": 1},
    ],
)
def test_a_damaged_state_is_not_obeyed(change):
    back, now, _step, trouble = state.parse_state(state.dump_state(dict(history(), **change), CLOCK, {}), later(15))
    assert trouble
    assert (back["spent"], back["watch_until"], now) == ([], 3600.0, 0.0)


GOOD = state.dump_state(history(spent=[[90.0, "unload"]]), CLOCK, {"xids_at": 1})


def test_no_damage_to_the_file_is_a_traceback():
    seen = {"damaged": 0, "as good": 0}

    @settings(max_examples=150, deadline=None)
    @given(st.integers(0, len(GOOD)), st.integers(0, 3), st.one_of(st.text(max_size=8), st.sampled_from(["", "1", "0", " "])))
    def damaged(start, length, instead):
        text = GOOD[:start] + instead + GOOD[start + length :]
        back, now, _step, trouble = state.parse_state(text, later(15))
        assert state.validated(back) is back
        assert now >= 0
        if trouble:
            assert (back["spent"], back["watch_until"]) == ([], 3600.0)
        seen["damaged" if trouble else "as good"] += 1

    damaged()
    assert min(seen.values()) >= 3, seen


def test_replacing_a_file_leaves_no_half_and_follows_no_link(tmp_path):
    path = tmp_path / "state.json"
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "state.json.new").symlink_to(victim)
    with pytest.raises(OSError):
        files.write_text(str(path), "text")
    assert victim.read_text() == "mine"
    (tmp_path / "state.json.new").unlink()
    files.write_text(str(path), "text")
    assert (path.read_text(), path.stat().st_mode & 0o777, os.listdir(tmp_path)) == ("text", 0o644, os.listdir(tmp_path))
    assert not (tmp_path / "state.json.new").exists()


def test_nobody_waits_for_who_puts_a_pipe_in_a_files_place(tmp_path):
    os.mkfifo(tmp_path / "state.json")
    signal.alarm(10)
    try:
        assert state.read(str(tmp_path / "state.json")) == ""
    finally:
        signal.alarm(0)


def test_on_a_full_disk_the_old_file_stays_whole(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    files.write_text(str(path), "as it was")
    room, write = [25], os.write

    def until_full(descriptor, data):
        if not room[0]:
            raise OSError(28, "No space left on device")
        done = write(descriptor, bytes(data)[: min(10, room[0])])
        room[0] -= done
        return done

    monkeypatch.setattr(files.os, "write", until_full)
    with pytest.raises(OSError, match="No space left on device: '.*state.json'"):
        files.write_text(str(path), "x" * 26)
    assert (path.read_text(), os.listdir(tmp_path)) == ("as it was", ["state.json"])
    room[0] = 25
    files.write_text(str(path), "y" * 25)
    assert path.read_text() == "y" * 25


# --- configuration ----------------------------------------------------------------------------


def write_config(folder, **parts):
    path = folder / "config.json"
    path.write_text(json.dumps({"state_dir": str(folder), "plan_path": str(folder / "plan.json"), **parts}))
    return str(path)


def test_configuration_is_complete_and_known(tmp_path):
    config = files.load_config(write_config(tmp_path, settings={"debounce": 6}))
    assert (config["settings"]["debounce"], config["settings"]["growth_mib"], config["mode"]) == (6, 1024, "dry_run")
    tuned = files.load_config(write_config(tmp_path, settings={"settle_s": {"restart": 90}, "limit_mib": None}))["settings"]
    assert tuned["settle_s"] == {"unload": 30, "end": 30, "restart": 90, "fence": 0}
    for wrong in (
        {"modus": "act"},
        {"settings": {"debonce": 3}},
        {"mode": "perhaps"},
        {"settings": {"idle_s": "long"}},
        {"settings": {"idle_s": -1}},
        {"settings": {"idle_s": None}},
        {"settings": {"unit": 3}},
        {"settings": {"settle_s": 3}},
        {"settings": {"settle_s": {"dance": 3}}},
        {"settings": {"budgets": {"restart": {"hour": True}}}},
    ):
        with pytest.raises(files.GuardError):
            files.load_config(write_config(tmp_path, **wrong))


def test_the_role_writes_what_the_program_reads():
    role = REPO / "roles" / "vram_guard"
    variables = yaml.safe_load((role / "vars" / "main.yml").read_text(encoding="utf-8"))
    assert set(variables["__vram_guard_config"]) <= set(files.CONFIG_DEFAULTS)
    tunable = set(variables["__vram_guard_fine_tuning_known"])
    own = set(variables["__vram_guard_settings"]) - {"load_grace_s"}
    assert tunable | own == set(guard_policy.DEFAULTS)
    assert not tunable & own
    defaults = yaml.safe_load((role / "defaults" / "main.yml").read_text(encoding="utf-8"))
    for name in own:
        assert defaults[f"vram_guard_{name}"] == guard_policy.DEFAULTS[name], name


# --- sources ----------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    answers = {}
    asked = []

    def log_message(self, *_args):
        pass

    def do_GET(self):
        self._answer(None)

    def do_POST(self):
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body):
        self.asked.append((self.command, self.path, body))
        status, content = self.answers.get(self.path, (404, b"{}"))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server():
    Handler.answers, Handler.asked = {}, []
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
    yield listening.server_address[1]
    listening.shutdown()
    listening.server_close()


PS = {
    "models": [
        {
            "name": "qwen3",
            "digest": "abc",
            "size": 11886 * MIB,
            "size_vram": 11886 * MIB,
            "context_length": 40960,
            "expires_at": "2027-01-15T08:00:30.123456789Z",
        }
    ]
}


def test_ollama_is_read(server):
    Handler.answers = {"/api/version": (200, b'{"version":"0.32.15"}'), "/api/ps": (200, json.dumps(PS).encode())}
    seen = ollama.ask_ollama("127.0.0.1", server, CLOCK["wall"])
    assert (seen["state"], seen["version"]) == ("ok", "0.32.15")
    assert seen["models"][0]["name"] == "qwen3:latest"
    assert seen["models"][0]["size_vram_mib"] == 11886
    assert seen["models"][0]["expires_in_s"] == pytest.approx(30.1, abs=0.1)


@pytest.mark.parametrize(
    "answer",
    [
        (500, b"{}"),
        (200, b"<html>"),
        (200, b"[]"),
        (200, b'{"models":[{}]}'),
        (200, b'{"models":[{"name":1,"size":1,"size_vram":1}]}'),
    ],
)
def test_an_answer_that_is_none_is_a_state(server, answer):
    Handler.answers = {"/api/version": (200, b'{"version":"0.32.15"}'), "/api/ps": answer}
    seen = ollama.ask_ollama("127.0.0.1", server, 0.0)
    assert (seen["state"], seen["models"]) == ("error", [])
    assert seen["detail"]


def test_nobody_listening_is_down_and_a_drip_is_a_timeout():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    assert ollama.ask_ollama("127.0.0.1", port, 0.0)["state"] == "down"
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stop = threading.Event()

        def drip():
            connection, _address = listening.accept()
            with connection:
                while not stop.wait(0.05):
                    try:
                        connection.sendall(b"H")
                    except OSError:
                        return

        threading.Thread(target=drip, daemon=True).start()
        began = time.monotonic()
        with pytest.raises(ollama.HttpError) as caught:
            ollama.http("127.0.0.1", listening.getsockname()[1], "/", timeout=0.4)
        stop.set()
    assert caught.value.kind == "timeout"
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2027-01-15T08:00:10Z", 10.0),
        ("2027-01-15T09:00:10.5+01:00", 10.5),
        ("2027-01-15T08:00:10.999999999Z", 11.0),
        ("2319-01-01T00:00:00Z", 9213321600.0),
        ("soon", None),
        (None, None),
    ],
)
def test_expiries(text, seconds):
    assert ollama.seconds_until(text, CLOCK["wall"]) == pytest.approx(seconds, abs=0.1) if seconds else True
    assert (ollama.seconds_until(text, CLOCK["wall"]) is None) == (seconds is None)


@pytest.mark.parametrize(
    ("text", "state"),
    [
        (None, "absent"),
        ('{"models":[{"name":"qwen3","total_mib":12600}]}', "ok"),
        ('{"plan":{"models":[{"name":"qwen3:latest","total_mib":12600.5,"gpu":0}],"fits":true}}', "ok"),
        ('{"models":[{"name":"qwen3","total_mib":-1}]}', "invalid"),
        ('{"models":[{"name":"qwen3","total_mib":NaN}]}', "invalid"),
        ('{"models":[{"name":"qwen3"}]}', "invalid"),
        ('{"models":', "invalid"),
        ("[]", "invalid"),
    ],
)
def test_plans(tmp_path, text, state):
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    plan = files.read_plan(str(path))
    assert plan["state"] == state
    assert bool(plan["models"]) == (state == "ok")
    if state == "ok":
        assert list(plan["models"]) == ["qwen3:latest"]


def gpu(**parts):
    base = {"index": 0, "uuid": "GPU-a", "pci_bus_id": "00000000:01:00.0", "state": "ok", "message": None, "total_mib": 24564}
    return {
        **base,
        "used_mib": 100,
        "free_mib": 24110,
        "gpu_util_percent": 0,
        "recovery_action": "none",
        "processes": [],
        **parts,
    }


def test_a_card_with_a_hole_in_its_figures_is_unreadable_not_empty():
    for hole in ({"used_mib": None}, {"free_mib": None}, {"processes": None}, {"state": "error", "message": "x"}):
        _state, cards = gpus.read_gpus({"state": "ok", "message": None, "gpus": [gpu(**hole)]})
        assert cards[0]["state"] == "unreadable", hole
    _state, cards = gpus.read_gpus({"state": "ok", "message": None, "gpus": [gpu(), gpu(index=1, uuid=None, state="lost")]})
    assert [(one["uuid"], one["state"]) for one in cards] == [("GPU-a", "ok"), ("index-1", "lost")]


def test_processes_are_recognized_by_what_they_are():
    assert gpus.kind_of("ollama", ["/opt/ollama/current/bin/ollama", "serve", ""]) == "server"
    assert gpus.kind_of("ollama", ["ollama", "runner", "--port", "1"]) == "runner"
    assert gpus.kind_of("ollama", ["ollama", "run", "qwen3"]) == "other"
    assert gpus.kind_of("llama-server", []) == "runner"
    assert gpus.kind_of("python3", ["python3", "train.py"]) == "other"
    assert gpus.kind_of(None, []) == "other"
    assert gpus.port_of(["llama-server", "--port", "40001", ""]) == 40001
    assert gpus.port_of(["llama-server", "--port", "0", ""]) is None
    assert gpus.port_of(["llama-server", "--port"]) is None


def test_a_process_of_this_machine_is_read():
    process = {
        "pid": os.getpid(),
        "type": "compute",
        "used_mib": 5,
        "unit": "u",
        "ppid": 1,
        "uid": os.getuid(),
        "comm": "x",
        "age_s": 1.0,
    }
    import pwd

    found = gpus.read_processes({"gpus": [gpu(processes=[process])]}, pwd.getpwuid(os.getuid()).pw_name)
    assert found[0]["uid_ok"] is True
    assert found[0]["start"] > 0
    assert 0 <= found[0]["cpu_s"] < 3600  # ansible-test forks for each test: a process of a few milliseconds
    assert found[0]["proc_state"] in ("R", "S")
    gone = gpus.read_processes({"gpus": [gpu(processes=[dict(process, pid=2**22 + 1, uid=None)])]}, "no-such-user")
    assert (gone[0]["uid_ok"], gone[0]["start"], gone[0]["cpu_s"], gone[0]["kind"]) == (False, 0, None, "other")


def test_the_health_port_of_a_stopped_runner_is_silent(server):
    process = {"kind": "runner", "unit": "ollama.service", "port": server, "health": None}
    Handler.answers = {"/health": (503, b'{"status":"loading model"}')}
    ollama.probe([process], "ollama.service")
    assert process["health"] == "ok"  # a model that loads answers, so it does not hang
    other = {"kind": "runner", "unit": "session-1.scope", "port": server, "health": None}
    ollama.probe([other], "ollama.service")
    assert other["health"] is None


XID = b"""\
1800000000.123456 host kernel: NVRM: Xid (PCI:0000:01:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.
1800000001.000000 host kernel: NVRM: Xid (PCI:0000:41:00): 31, pid=4242, name=llama-server, Ch 00000008
1800000002.000000 host kernel: NVRM: GPU at PCI:0000:01:00: GPU-a
"""


def test_xids_are_read_from_the_kernel_log():
    def run(_command, **_more):
        return subprocess.CompletedProcess([], 0, stdout=XID)

    seen = kernel_log.read_xids([{"pci": "00000000:01:00.0", "uuid": "GPU-a"}], 120, run)
    assert [(one["gpu"], one["xid"]) for one in seen["events"]] == [("GPU-a", 79), ("0000:41:00", 31)]

    def broken(*_args, **_more):
        raise FileNotFoundError

    assert kernel_log.read_xids([], 120, broken) == {"state": "unreadable", "events": []}


# --- one tick ---------------------------------------------------------------------------------


def nvml(*processes, used=None, state="ok"):
    """A stand-in for gpu_nvml.sample."""
    total = sum(one["used_mib"] for one in processes) + 1 if used is None else used
    message = None if state == "ok" else "no driver"
    gpus = [gpu(processes=list(processes), used_mib=total, free_mib=24210 - total)] if state == "ok" else []
    return lambda: {"state": state, "message": message, "gpus": gpus}


def holder(pid=4_100_000, mib=9000, comm="ollama"):
    return {
        "pid": pid,
        "type": "compute",
        "used_mib": mib,
        "unit": "ollama.service",
        "ppid": 1,
        "uid": 1,
        "comm": comm,
        "age_s": 9e3,
    }


@pytest.fixture
def config(tmp_path, server, monkeypatch):
    monkeypatch.setattr(tick, "REST_PATIENCE_S", 0)  # asked once: how often has its own test
    Handler.answers = {"/api/version": (200, b'{"version":"0.32.15"}'), "/api/ps": (200, b'{"models":[]}')}
    return files.load_config(write_config(tmp_path, port=server, metrics=True))


def ticks(config, count, start=0.0, **more):
    records = []
    for number in range(count):
        out = io.StringIO()
        record = tick.tick(config, clock=later(start + 15 * number), out=out, **more)
        records.append((record, out.getvalue()))
    return records


def test_a_tick_leaves_state_metrics_and_one_line(config, tmp_path):
    (first, line), (_second, silence) = ticks(config, 2, nvml=nvml())
    assert first["action"] == "none"
    assert line.startswith("<5>{")
    assert json.loads(line[3:])["plan"] == "no plan"
    assert silence == ""  # the same again is not said again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "state.json", "status.json", "vram_guard.prom"]
    metrics = (tmp_path / "vram_guard.prom").read_text()
    assert 'vram_guard_source_readable{source="plan"} 0' in metrics
    assert 'vram_guard_gpu_memory_used_bytes{uuid="GPU-a"} 1048576' in metrics
    for text in metrics.splitlines():
        assert re.fullmatch(r"# (HELP|TYPE) vram_guard_\w+ .+|vram_guard_\w+(\{\w+=\"[^\"]*\"\})? [0-9.e+]+", text), text


def test_an_hour_later_it_is_said_again(config):
    ticks(config, 1, nvml=nvml())
    [(_record, line)] = ticks(config, 1, start=3700, nvml=nvml())
    assert line


@pytest.mark.slow
def test_a_day_of_ticks_leaves_no_growing_file(config, tmp_path):
    sizes = []
    for number in range(200):
        runner = dict(holder(pid=4_100_000 + number % 7, comm="llama-server"), used_mib=9000)
        tick.tick(config, nvml=nvml(runner), clock=later(15 * number), out=io.StringIO())
        sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
    assert max(sizes[100:]) <= max(sizes[:100]) + 200


def test_a_dry_run_by_hand_changes_nothing(config, tmp_path):
    record = tick.tick(config, dry_run=True, nvml=nvml(), clock=later(0))
    assert record["action"] == "none"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]


def snapshot(folder):
    """{name: content, or kind of what is no file} of a folder."""
    return {path.name: path.read_bytes() if path.is_file() else "folder" for path in folder.iterdir()}


def test_a_dry_run_by_hand_of_a_guard_that_acts_touches_nothing(config, tmp_path, capsys, monkeypatch):
    """A restart is due and then an unload: both are said, and neither is done, asked for or counted."""
    config["mode"] = "act"
    config["settings"] = dict(config["settings"], load_grace_s=0)
    start = watched(config)
    trapped = nvml(holder(comm="llama-server"))
    assert ticks(config, 4, start=start, nvml=trapped)[-1][0]["why"] == "trapped seen 3 times, 4 wanted"
    Handler.asked.clear()
    before = snapshot(tmp_path)
    record = tick.tick(config, dry_run=True, nvml=trapped, clock=later(start + 60))
    assert (record["action"], record["mode"], record["done"]) == ("restart", "act", None)
    assert snapshot(tmp_path) == before
    assert {verb for verb, _path, _body in Handler.asked} == {"GET"}
    # The command line does the same.
    given = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**given, "mode": "act", "settings": {"load_grace_s": 0}}))
    before = snapshot(tmp_path)
    monkeypatch.setattr(tick, "ask_nvml", trapped)
    monkeypatch.setattr(state, "clocks", lambda: later(start + 60))
    assert program.main(["--config", str(tmp_path / "config.json"), "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["action"] == "restart"
    assert snapshot(tmp_path) == before
    # The tick itself does it.
    assert ticks(config, 1, start=start + 60, nvml=trapped)[0][0]["done"] == "requested"
    assert snapshot(tmp_path) != before


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_state_file_that_cannot_be_read_is_not_taken_for_none(config, tmp_path, dry_run):
    """Else budgets, ladder and fence would begin again."""
    config["mode"] = "act"
    config["settings"] = dict(config["settings"], load_grace_s=0)
    ticks(config, 1, nvml=nvml())
    (tmp_path / "state.json").unlink()
    (tmp_path / "state.json").mkdir()
    before = snapshot(tmp_path)
    for number in range(8):
        with pytest.raises(OSError, match="state.json"):
            tick.tick(config, dry_run=dry_run, nvml=nvml(holder(comm="llama-server")), clock=later(400 + 15 * number), out=io.StringIO())
    assert snapshot(tmp_path) == before
    with pytest.raises(OSError, match="state.json"):
        commands.status_text(config, later(600))
    with pytest.raises(OSError, match="state.json"):
        commands.lift_fence(config, later(600))


def test_a_damaged_state_file_is_kept_aside_and_an_hour_of_watching_begins(config, tmp_path):
    config["mode"] = "act"
    ticks(config, 1, nvml=nvml())
    (tmp_path / "state.json").write_text("{")
    looked = tick.tick(config, dry_run=True, nvml=nvml(), clock=later(15))
    assert "damaged" in looked["trouble"] and (tmp_path / "state.json").read_text() == "{"
    [(record, line)] = ticks(config, 1, start=15, nvml=nvml())
    assert "damaged" in record["trouble"] and "damaged" in line
    assert (tmp_path / "state.bad.json").read_text() == "{"
    records = [record for record, _line in ticks(config, 6, start=30, nvml=nvml(holder(comm="llama-server")))]
    assert records[-1]["action"] == "none"  # it may still load
    records = [record for record, _line in ticks(config, 30, start=120, nvml=nvml(holder(comm="llama-server")))]
    assert (records[-1]["action"], "only watching" in records[-1]["why"]) == ("wait", True)
    assert "request.json" not in os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "drained"),
    [(None, False), ("", True), ("upgrade_driver.yml\n", True), ("vram-guard restarts ollama.service\n", False), (..., True)],
)
def test_a_host_is_drained_by_whoever_is_not_the_guard(tmp_path, monkeypatch, text, drained):
    monkeypatch.setattr(files, "DRAIN_FLAG", str(tmp_path / "drain"))
    if text is ...:
        (tmp_path / "drain").mkdir()  # a flag that nobody can read
    elif text is not None:
        (tmp_path / "drain").write_text(text)
    assert files.drained() is drained


def test_a_tick_knows_that_the_host_is_drained(config, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "DRAIN_FLAG", str(tmp_path.parent / f"{tmp_path.name}.drain"))
    pathlib.Path(files.DRAIN_FLAG).write_text("upgrade_driver.yml\n")
    for number in range(8):
        ticks(config, 1, start=15 * number, nvml=nvml(state="ok" if number % 2 else "no_driver"))
    assert json.loads((tmp_path / "state.json").read_text())["history"]["flaps"] == []
    pathlib.Path(files.DRAIN_FLAG).unlink()
    for number in range(8, 16):
        [(record, _line)] = ticks(config, 1, start=15 * number, nvml=nvml(state="ok" if number % 2 else "no_driver"))
    assert [one["rule"] for one in record["alerts"]] == ["nvml_flapping"]


def watched(config):
    """Past the five minutes that a new guard only watches."""
    ticks(config, 22, nvml=nvml())
    return 22 * 15


def test_in_a_dry_run_nothing_is_asked_for(config, tmp_path):
    start = watched(config)
    records = [record for record, _line in ticks(config, 8, start=start, nvml=nvml(holder(comm="llama-server"), state="ok"))]
    assert "request.json" not in os.listdir(tmp_path)
    assert all(asked[0] == "GET" for asked in Handler.asked)
    assert {record["mode"] for record in records} == {"dry_run"}


def act_on_trapped(config):
    config["mode"] = "act"
    config["settings"] = dict(config["settings"], load_grace_s=0)
    start = watched(config)
    return [record for record, _line in ticks(config, 8, start=start, nvml=nvml(holder(comm="llama-server")))]


def test_what_it_waits_for_is_said(config):
    whys = [record["why"] for record in act_on_trapped(config)]
    assert whys[2:4] == ["trapped seen 2 times, 4 wanted", "trapped seen 3 times, 4 wanted"]
    assert whys[-1] == "trapped: what was done last is given time to take effect"
    lost = gpu(state="lost", processes=None, used_mib=None, free_mib=None, total_mib=None)
    [(record, _line)] = ticks(config, 1, start=900, nvml=lambda: {"state": "ok", "message": None, "gpus": [lost]})
    assert record["why"] == "gpu_lost seen 1 times, 2 wanted"


def test_a_restart_is_left_to_the_privileged_part(config, tmp_path):
    records = act_on_trapped(config)
    assert [record["action"] for record in records].count("restart") == 1
    request = json.loads((tmp_path / "request.json").read_text())
    assert (request["kind"], request["unit"], set(request), request["go"]) == ("restart", "ollama.service", act.REQUEST_KEYS["restart"], True)
    assert 'actions_total{action="restart"} 1' in (tmp_path / "vram_guard.prom").read_text()


def test_what_cannot_be_booked_is_not_done(config, tmp_path, monkeypatch):
    """Else it would be done again at every tick, beyond every budget."""
    config["mode"] = "act"
    config["settings"] = dict(config["settings"], load_grace_s=0)
    start = watched(config)
    trapped = nvml(holder(comm="llama-server"))
    assert ticks(config, 4, start=start, nvml=trapped)[-1][0]["why"] == "trapped seen 3 times, 4 wanted"
    full, write = [True], files.write_text

    def on_a_full_disk(path, *more):
        if full[0] and path.endswith("/state.json"):
            raise OSError(28, "No space left on device", path)
        return write(path, *more)

    monkeypatch.setattr(state, "write_text", on_a_full_disk)
    for number in range(4):
        with pytest.raises(files.GuardError, match="without its state file the guard does nothing"):
            tick.tick(config, nvml=trapped, clock=later(start + 60 + 15 * number), out=io.StringIO())
    assert json.loads((tmp_path / "request.json").read_text())["go"] is False
    full[0] = False
    assert [record["action"] for record, _line in ticks(config, 8, start=start + 150, nvml=trapped)].count("restart") == 1


def slots(*busy):
    return 200, json.dumps([{"id": number, "is_processing": one} for number, one in enumerate(busy)]).encode()


@pytest.mark.parametrize(
    "answer, count",
    [
        (slots(False, False), 0),
        (slots(True, False), 1),
        (slots(True, True), 2),
        ((503, b'{"error":"loading model"}'), 1),
        ((404, b"404 page not found"), None),
        ((200, b"not json"), None),
        ((200, b'[{"id": 0}]'), None),
    ],
)
def test_what_a_runner_is_at(server, answer, count):
    Handler.answers = {"/slots": answer}
    runner = {"kind": "runner", "unit": "ollama.service", "port": server, "health": "ok"}
    assert ollama.under_way([runner, runner], "ollama.service") == count  # on two cards it is still one runner
    hung, strange, other = dict(runner, health="timeout"), dict(runner, unit="x.service"), dict(runner, kind="other")
    assert ollama.under_way([hung, strange, other], "ollama.service") == 0
    assert ollama.under_way([dict(runner, port=None)], "ollama.service") is None


def test_a_runner_that_works_at_a_batch_counts_and_one_that_is_gone_does_not(monkeypatch):
    monkeypatch.setattr(ollama, "HEALTH_TIMEOUT_S", 0.2)
    runner = {"kind": "runner", "unit": "u", "health": "ok"}
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        runner["port"] = silent.getsockname()[1]
        assert ollama.under_way([runner], "u") == 1
    assert ollama.under_way([runner], "u") == 0


def test_rest_is_two_answers_in_a_row():
    said, slept = [2, 0, 1, 0, 0, 5], []
    clock = iter(range(100))
    assert ollama.await_rest(lambda: said.pop(0), 50, lambda: next(clock), slept.append) == 0
    assert (said, len(slept)) == ([5], 4)
    assert ollama.await_rest(lambda: 3, 5, lambda: next(clock), slept.append) == 3
    assert ollama.await_rest(lambda: 0, 0, lambda: 1, slept.append) == 0


def test_a_restart_waits_for_what_is_under_way_and_others_can_see_it(config, tmp_path, server, monkeypatch):
    """The server traps memory while a chat runs: no restart before the slots are at rest, none later than the bound."""
    monkeypatch.setattr(tick, "REST_PATIENCE_S", 0)
    monkeypatch.setattr(gpus, "port_of", lambda argv: server)
    config["mode"] = "act"
    start = watched(config)
    Handler.answers.update({"/health": (200, b"{}"), "/slots": slots(True)})
    runner = holder(pid=4_100_001, mib=12_000, comm="llama-server")
    monkeypatch.setattr(gpus, "kind_of", lambda comm, argv: "server" if comm == "ollama" else "runner")
    seen = nvml(holder(), runner)
    model = {"name": "q:1", "digest": "d", "size": 11_900 * MIB, "size_vram": 11_900 * MIB, "expires_at": "2319-01-01T00:00:00Z"}
    Handler.answers["/api/ps"] = (200, json.dumps({"models": [model]}).encode())
    records = [record for record, _line in ticks(config, 6, start=start, nvml=seen)]
    assert [record["action"] for record in records[-3:]] == ["wait"] * 3, records[-1]
    assert "1 generation to end" in records[-1]["why"]
    assert json.loads((tmp_path / "status.json").read_text())["draining"] is True
    assert "vram_guard_draining 1" in (tmp_path / "vram_guard.prom").read_text()
    assert json.loads((tmp_path / "request.json").read_text())["go"] is False
    assert json.loads((tmp_path / "request.json").read_text())["boottime"] == CLOCK["mono"] + start + 75
    [(record, _line)] = ticks(config, 1, start=start + 85, nvml=nvml(runner))
    assert (record["action"], "request.json" in os.listdir(tmp_path)) == ("none", False)
    ticks(config, 4, start=start + 95, nvml=seen)
    assert json.loads((tmp_path / "request.json").read_text())["go"] is False
    start += 65
    Handler.answers["/slots"] = slots(False)
    [(record, _line)] = ticks(config, 1, start=start + 90, nvml=seen)
    assert (record["action"], record["rule"]) == ("restart", "trapped")
    assert json.loads((tmp_path / "status.json").read_text())["draining"] is False


def test_what_others_read_is_there_and_goes(config, tmp_path):
    start = watched(config)
    status = json.loads((tmp_path / "status.json").read_text())
    assert set(status) == {"version", "at", "mode", "fenced", "fence", "draining", "budget_left", "decision"}
    assert (status["version"], status["fenced"], status["fence"], status["draining"]) == (1, False, None, False)
    assert status["budget_left"]["restart"] == {"hour": 2, "day": 4}
    lost = gpu(state="lost", processes=None, used_mib=None, free_mib=None, total_mib=None)
    config["mode"] = "act"
    ticks(config, 3, start=start, nvml=lambda: {"state": "ok", "message": None, "gpus": [lost]})
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["fenced"], status["fence"]["rule"]) == (True, "gpu_lost")
    assert status["fence"]["since"] == pytest.approx(CLOCK["wall"] + start + 15)
    assert "only a person" in (tmp_path / "fenced").read_text()
    assert status["at"] == CLOCK["wall"] + start + 30
    commands.lift_fence(config, later(start + 40))
    assert "fenced" not in os.listdir(tmp_path)
    assert json.loads((tmp_path / "status.json").read_text())["fenced"] is False


def test_an_unload_is_asked_of_the_server_and_a_refusal_is_said(config, server):
    decision = {"action": "unload", "target": {"model": "qwen3:latest"}}
    Handler.answers["/api/generate"] = (200, b"{}")
    assert actions.carry_out(decision, config, CLOCK) == "asked"
    assert json.loads(Handler.asked[-1][2]) == {"model": "qwen3:latest", "keep_alive": 0, "stream": False}
    Handler.answers["/api/generate"] = (500, b'{"error":"no"}')
    assert actions.carry_out(decision, config, CLOCK) == 'failed: 500 {"error":"no"}'


def test_unreadable_gpus_are_reported_and_never_zero(config):
    records = ticks(config, 30, nvml=nvml(state="no_driver"))
    assert {record["action"] for record, _line in records} == {"none", "alert"}
    assert records[-1][0]["alerts"][0]["rule"] == "driver"
    assert records[-1][0]["gpus"] == []


def test_status_explain_and_unfence(config, tmp_path):
    assert "has not run yet" in commands.status_text(config, CLOCK)
    records = act_on_trapped(config)
    end = 30 * 15
    for _turn in range(14):
        records += [record for record, _line in ticks(config, 1, start=end, nvml=nvml(holder(comm="llama-server")))]
        end += 15
    assert records[-1]["action"] == "alert"
    status = commands.status_text(config, later(end))
    assert "FENCED" in status
    assert "1 of 2 left this hour" in status
    assert "so far     unload 0, end 0, restart 1, fence 1;" in status
    assert "GPU-a" in status
    assert "fence is removed" in commands.lift_fence(config, later(end))
    assert commands.lift_fence(config, later(end)) == "There was no fence."
    assert "FENCED" not in commands.status_text(config, later(end))
    for rule in guard_policy.RULES:
        assert rule in commands.rules_text(config["settings"])


def test_the_command_line(config, tmp_path, capsys):
    path = str(tmp_path / "config.json")
    assert program.main(["--config", path, "explain"]) == 0
    assert program.main(["--config", path, "status"]) == 0
    assert program.main(["--config", path, "unfence"]) == 1
    assert program.main(["--config", path, "dance"]) == 2
    assert program.main(["--config", str(tmp_path / "none"), "status"]) == 1
    assert "run it again" in capsys.readouterr().err


# --- the privileged part ----------------------------------------------------------------------


def request(**parts):
    base = {"kind": "restart", "boottime": CLOCK["mono"] - 1, "boot": "b1", "unit": "ollama.service", "go": True}
    base.update(parts)
    return json.dumps({key: value for key, value in base.items() if value is not ...})


END = {"kind": "end", "unit": ..., "go": ..., "pid": 4242, "start": 99}


@pytest.mark.parametrize(
    "text",
    [
        request(unit="ssh.service"),
        request(unit="ollama.service; reboot"),
        request(kind="reboot"),
        request(extra=1),
        request(go=1),
        request(go=...),
        request(boottime=CLOCK["mono"] - 120),
        request(boottime=CLOCK["mono"] + 120),
        request(boottime="now"),
        request(boot="b0"),
        request(**{**END, "pid": 1}),
        request(**{**END, "pid": "4242"}),
        request(**{**END, "pid": True}),
        request(**{**END, "start": None}),
        "[]",
        "[" * 4000,
        "{",
        '"restart"',
    ],
)
def test_requests_that_are_none_are_refused(config, text):
    config["mode"] = "act"
    with pytest.raises(files.GuardError, match=r"[Nn]othing was done"):
        act.checked_request(text, config, CLOCK)


def test_requests_that_are_meant_are_taken_only_in_act_mode(config):
    config["mode"] = "act"
    assert act.checked_request(request(), config, CLOCK)["kind"] == "restart"
    assert act.checked_request(request(**END), config, CLOCK)["pid"] == 4242
    config["mode"] = "dry_run"
    with pytest.raises(files.GuardError, match="dry_run"):
        act.checked_request(request(), config, CLOCK)


def test_only_a_small_plain_file_of_the_guard_is_read(tmp_path):
    path = tmp_path / "request.json"
    path.write_text("{}")
    assert act.read_request(str(path), os.getuid()) == "{}"
    with pytest.raises(files.GuardError):
        act.read_request(str(path), os.getuid() + 1)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(files.GuardError):
        act.read_request(str(tmp_path / "link"), os.getuid())
    os.link(path, tmp_path / "hard")
    with pytest.raises(files.GuardError):
        act.read_request(str(path), os.getuid())
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(files.GuardError):
        act.read_request(str(tmp_path / "pipe"), os.getuid())
    (tmp_path / "big").write_text("x" * 5000)
    with pytest.raises(files.GuardError):
        act.read_request(str(tmp_path / "big"), os.getuid())


def test_a_restart_restarts_the_unit_of_the_configuration(config, tmp_path, monkeypatch):
    flag = tmp_path / "run" / "drain"
    monkeypatch.setattr(files, "DRAIN_FLAG", str(flag))
    config["mode"] = "act"
    (tmp_path / "request.json").write_text(request())
    asked = []

    def run(command, **_more):
        asked.append(command)
        assert "vram-guard restarts ollama.service" in flag.read_text()
        return subprocess.CompletedProcess(command, 0)

    assert act.act(config, CLOCK, run) == "ollama.service restarted"
    assert asked == [["systemctl", "restart", "ollama.service"]]
    with pytest.raises(files.GuardError, match="journalctl"):
        act.act(config, CLOCK, lambda command, **_more: subprocess.CompletedProcess(command, 1))
    assert not flag.exists()
    flag.write_text("somebody upgrades the driver")
    assert act.act(config, CLOCK, lambda command, **_more: subprocess.CompletedProcess(command, 0)) == "ollama.service restarted"
    assert flag.read_text() == "somebody upgrades the driver"


def test_a_restart_that_is_due_no_more_is_none(config, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "DRAIN_FLAG", str(tmp_path / "drain"))
    config["mode"] = "act"
    (tmp_path / "request.json").write_text(request(go=False))
    monkeypatch.setattr(act.time, "sleep", None)
    # Its clock is another than that of the first read, so the second read finds it too old.
    assert "no longer due" in act.act(config, CLOCK, None)
    assert not (tmp_path / "drain").exists()


def test_it_goes_when_the_guard_says_so_and_not_for_ever():
    wait = {"kind": "restart", "go": False}
    said, slept = [wait, wait, dict(wait, go=True)], []
    assert act.await_go(wait, lambda: said.pop(0), 100, lambda: 0, slept.append) is True
    assert len(slept) == 3
    assert act.await_go(dict(wait, go=True), None, 100, lambda: 0, slept.append) is True
    assert act.await_go(wait, lambda: {"kind": "end"}, 100, lambda: 0, slept.append) is False
    clock = iter(range(100))
    assert act.await_go(wait, lambda: wait, 5, lambda: next(clock), slept.append) is False

    def gone():
        raise files.GuardError("no request")

    assert act.await_go(wait, gone, 100, lambda: 0, slept.append) is False


def test_every_objection_to_ending_a_process(config):
    import pwd

    me = pwd.getpwuid(os.getuid())
    config.update(user=me.pw_name, engine_dir="/opt/ollama")
    good = {
        "start": 99,
        "uid": me.pw_uid,
        "exe": "/opt/ollama/1/lib/ollama/llama-server",
        "kind": "runner",
        "unit": "ollama.service",
        "ppid": 50,
    }
    asked = {"pid": 4242, "start": 99}
    assert act.objections(asked, good, config) == []
    assert act.objections(asked, dict(good, unit="session-1.scope", ppid=1), config) == []
    for wrong in (
        {"start": 100},
        {"uid": me.pw_uid + 1},
        {"uid": None},
        {"exe": "/usr/bin/python3"},
        {"exe": "/opt/ollama-evil/llama-server"},
        {"exe": None},
        {"kind": "server"},
        {"unit": "session-1.scope", "ppid": 50},
    ):
        assert len(act.objections(asked, dict(good, **wrong), config)) == 1, wrong


STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
PLAIN = "import time; print('up', flush=True); time.sleep(600)"


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="pidfd came with Python 3.9 on Linux")
@pytest.mark.parametrize("program", [PLAIN, STUBBORN])
def test_a_real_process_is_ended_and_no_other(config, tmp_path, monkeypatch, program):
    import pwd

    config.update(user=pwd.getpwuid(os.getuid()).pw_name, engine_dir=str(tmp_path))
    shutil.copy(os.path.realpath(sys.executable), tmp_path / "llama-server")
    environment = dict(os.environ, PYTHONHOME=sys.base_prefix)
    command = [str(tmp_path / "llama-server"), "-c", program]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as victim:
        try:
            assert victim.stdout.readline() == b"up\n"
            stat = gpus.process_stat(victim.pid)
            config["settings"] = dict(config["settings"], unit=_guard_unit(victim.pid))
            wrong = {"pid": victim.pid, "start": stat["start"] + 1}
            with pytest.raises(files.GuardError, match="another process"):
                act.end_process(wrong, config)
            assert victim.poll() is None
            monkeypatch.setattr(act, "_gone", lambda handle, _patience, gone=act._gone: gone(handle, 0.5))
            # Until somebody waits for it a child is a zombie; its pidfd is readable all the same.
            assert act.end_process({"pid": victim.pid, "start": stat["start"]}, config).startswith(f"PID {victim.pid} ended")
            assert victim.wait(10) == -(signal.SIGKILL if program == STUBBORN else signal.SIGTERM)
        finally:
            victim.kill()
    assert "gone already" in act.end_process({"pid": 2**22 - 1, "start": 1}, config)


def apart(function):
    """``(exit status, text)`` of a function called in a forked process: it may give up root there."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text, code = function(), 0
        except Exception as error:
            text, code = f"{type(error).__name__}: {error}", 1
        os.write(writer, str(text).encode())
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as said:
        text = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


@pytest.mark.skipif(os.geteuid() != 0 or not hasattr(os, "pidfd_open"), reason="only root can give up root")
@pytest.mark.parametrize(("owner", "ended"), [("root", False), ("daemon", False), ("nobody", True)])
def test_the_kernel_lets_the_helper_signal_the_servers_processes_only(config, monkeypatch, owner, ended):
    monkeypatch.setattr(act, "objections", lambda *_arguments: [])
    config.update(user="nobody")
    with subprocess.Popen(["/bin/sleep", "600"], user=owner, group="nogroup", extra_groups=[]) as victim:
        try:
            asked = {"pid": victim.pid, "start": gpus.process_stat(victim.pid)["start"]}
            status, text = apart(lambda: act.end_process(asked, config))
            if ended:
                assert (status, victim.wait(10)) == (0, -signal.SIGTERM), text
            else:
                assert (status, victim.poll()) == (1, None), text
                assert text.startswith("PermissionError")
        finally:
            victim.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up root")
def test_there_is_no_way_back_to_root():
    def tried():
        act.become(65534, 65534)
        for way in (lambda: os.setresuid(0, 0, 0), lambda: os.seteuid(0), lambda: os.setresgid(0, 0, 0), lambda: os.setgroups([0])):
            with pytest.raises(PermissionError):
                way()
        return os.getresuid(), os.getresgid(), os.getgroups()

    assert apart(tried) == (0, str(((65534,) * 3, (65534,) * 3, [])))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up root")
def test_unfencing_as_root_follows_no_link_out_of_the_guards_folder(config, tmp_path):
    """The folder is the guard's own: whatever it plants there, root does not write through."""
    folder, prize = tmp_path / "state", tmp_path / "prize"
    folder.mkdir()
    prize.write_text("root's")
    for above in tmp_path.parents[:-2]:
        above.chmod(above.stat().st_mode | 0o11)
    tmp_path.chmod(0o755)
    config.update(mode="act", state_dir=str(folder))
    lost = gpu(state="lost", processes=None, used_mib=None, free_mib=None, total_mib=None)
    ticks(config, 3, nvml=lambda: {"state": "ok", "message": None, "gpus": [lost]})
    os.chown(folder, 65534, 65534)
    (folder / "state.json.new").symlink_to(prize)
    status, _text = apart(lambda: commands.lift_fence(config, later(40)))
    assert (status, prize.read_text()) == (1, "root's")
    (folder / "state.json.new").unlink()
    status, text = apart(lambda: commands.lift_fence(config, later(40)))
    assert (status, "fence is removed" in text) == (0, True), text
    assert (folder / "state.json").stat().st_uid == 65534


def _guard_unit(pid):
    """Whatever unit this test runs in."""
    return processes.unit_of_pid(pid)


def test_the_program_starts_without_site_and_without_what_a_quiet_tick_does_not_need():
    """What a tick imports is what it costs: see bench/guard.py."""
    lib = program.__file__.rpartition("/ansible_collections/")[0]
    code = (
        f"import sys; sys.path.insert(0, {lib!r})\n"
        "from ansible_collections.gpufleet.llm.plugins.module_utils._guard import program\n"
        "from ansible_collections.gpufleet.llm.plugins.module_utils._guard import gpus\n"
        "gpus.ask_nvml()\n"
        "heavy = {'pynvml', 'http.client', 'urllib.request', 'argparse', 'ssl', 'email', 'logging', 'asyncio', 'dataclasses', 'typing', 'subprocess'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert ctypes.sizeof(ctypes.c_void_p) in (4, 8)


def _promtool():
    kept = os.path.join(os.environ.get("GPUFLEET_CACHE") or os.path.expanduser("~/.cache/gpufleet"), "promtool/usr/bin/promtool")
    return shutil.which("promtool") or (kept if os.access(kept, os.X_OK) else None)


@pytest.mark.skipif(_promtool() is None, reason="tools/promtool fetches it")
def test_promtool_has_nothing_to_say_about_the_metrics(config, tmp_path):
    ticks(config, 3, nvml=nvml(holder(comm="llama-server"), state="ok"))
    text = (tmp_path / "vram_guard.prom").read_text()
    done = subprocess.run([_promtool(), "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # It does see what is wrong.
    done = subprocess.run([_promtool(), "check", "metrics"], input=text.replace("_total", ""), capture_output=True, text=True, check=False)
    assert done.returncode == 3


def test_every_alert_rule_asks_for_a_metric_that_is_written(config, tmp_path):
    ticks(config, 1, nvml=nvml())
    text = (tmp_path / "vram_guard.prom").read_text()
    written = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    rules = yaml.safe_load((REPO / "roles/vram_guard/files/vram_guard.rules.yml").read_text(encoding="utf-8"))
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    asked = set(re.findall(r"vram_guard_\w+", " ".join(expressions)))
    assert asked <= written
    named = set(re.findall(r'rule=~"([\w|]+)"', " ".join(expressions))[0].split("|"))
    assert named <= set(guard_policy.RULES)
    page = (REPO / "docs" / "guides" / "vram_guard.md").read_text(encoding="utf-8")
    for metric in written:
        assert metric.replace("vram_guard", "", 1) in page, metric
