# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fleet verification: a host that is well has no failed verdict, each defect fails the one that names it, and no other."""

from __future__ import annotations

import copy
import subprocess

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._fleet import across, judge, observe

MIB = 1024 * 1024
BUDGETS = {kind: {"hour": 3, "day": 9} for kind in ("unload", "end", "restart")}
DECLARED = {
    "files": [{"path": "/etc/a", "sha256": "11", "mode": "0644", "owner": "root"}], "links": {"/opt/ollama/current": "0.32.15"}, "directories": ["/opt/x"],
    "units": {"ollama.service": {"state": "active", "enabled": True, "config": "c0ffee"}}, "ports": [11434], "models": ["qwen"], "ollama_url": "",
    "plan_path": "/etc/plan", "guard": {"interval_s": 15, "state_path": "/state", "budgets": BUDGETS}, "certificates": ["/c"], "certificate_days": 21,
    "backup_dir": "/b", "backup_days": 7, "gpu_required": True, "tolerance_mib": 256, "unit": "ollama.service", "exposure": 2.0,
    "driver_held": True,
}  # fmt: skip
LOADED = {"name": "qwen:latest", "digest": "d1", "size": 100, "size_vram": 100, "context_length": 40960}
CARD = {"index": 0, "name": "RTX 4090", "uuid": "u", "state": "ok", "message": None, "total_mib": 24564, "used_mib": 12443, "held_mib": 12443, "others_mib": 0}
WELL = {
    "at": 0.0, "nvml": "ok", "gpus": [CARD],
    "driver": {"loaded": "580.1", "library": "580.1", "kernel": "6.1", "next_kernel": "6.1", "flavour": "open", "problems": [],
               "reboot": {"needed": False, "reason": None, "safe": True, "blocked_by": None}},
    "packages": {"version": "580.126.09", "unheld": [], "error": None},
    "files": {"/etc/a": {"kind": "file", "owner": "root", "mode": "0644", "sha256": "11"}}, "links": {"/opt/ollama/current": "0.32.15"},
    "directories": {"/opt/x": "directory"}, "exposure": {"ollama.service": 1.4},
    "units": {"ollama.service": {"load_state": "loaded", "active_state": "active", "unit_file_state": "enabled", "need_daemon_reload": False,
                                 "config": "c0ffee"}},
    "listeners": {"11434": [{"address": "127.0.0.1", "command": "ollama"}, {"address": "::1", "command": "ollama"}]},
    "ollama": {"version": "0.32.15", "models": {"qwen:latest": "d1"}, "loaded": [LOADED], "error": None},
    "plan": {"models": [{"name": "qwen", "effective_num_ctx": 40960}], "gpus": [{"index": 0, "planned_mib": 12602, "budget_mib": 23185}]}, "measured": None,
    "guard": {"age_s": 9.0, "fence": None, "mode": "act", "action": "none", "rule": None, "error": None,
              "spent": {kind: {"hour": 0, "day": 0} for kind in BUDGETS}},
    "certificates": [{"path": "/c", "days": 60.0}], "backup_age_days": 1.0,
}  # fmt: skip


def changed(**changes):
    """WELL with changes: driver__reboot__safe=False goes down by two underscores."""
    seen = copy.deepcopy(WELL)
    for path, value in changes.items():
        place, *rest = path.split("__")[:-1] or [None], path.split("__")[-1]
        inner = seen
        for key in place if place != [None] else ():
            inner = inner[key]
        inner[rest[0]] = value
    return seen


def failed(seen, declared=None):
    return [verdict["name"] for verdict in judge.judge("gpu1", seen, declared or DECLARED)["verdicts"] if verdict["state"] == "fail"]


def test_a_host_that_is_well():
    judged = judge.judge("gpu1", WELL, DECLARED)
    assert judged["verdict"] == "pass" and {verdict["state"] for verdict in judged["verdicts"]} == {"pass"}


UNIT = WELL["units"]["ollama.service"]
DEFECTS = {
    "a mismatch of library and module": ({"driver__problems": [{"code": "mismatch", "message": "Two versions.", "stops": "gpu"}]}, "driver"),
    "nouveau is loaded": ({"driver__problems": [{"code": "nouveau", "message": "It is loaded.", "stops": "never"}]}, "driver"),
    "a reboot would lose the GPU": ({"driver__reboot": {"needed": False, "reason": None, "safe": False, "blocked_by": "No module."}}, "next reboot"),
    "a reboot is due": ({"driver__reboot": {"needed": True, "reason": "Loaded is old.", "safe": True, "blocked_by": None}}, "next reboot"),
    "a driver that is not held": ({"packages__unheld": ["nvidia-driver-cuda"]}, "holds"),
    "a driver that was removed": ({"packages__version": None}, "holds"),
    "dpkg does not answer": ({"packages__error": "dpkg is locked."}, "holds"),
    "a lost card": ({"gpus": [{**CARD, "state": "lost", "message": "GPU 0 has fallen off the bus."}]}, "cards"),
    "a model is missing": ({"ollama__models": {"other:latest": "d1"}}, "models"),
    "a model half on the CPU": ({"ollama__loaded": [{**LOADED, "size_vram": 60}]}, "models"),
    "a model all on the CPU": ({"ollama__loaded": [{**LOADED, "size": 0, "size_vram": 0}]}, "models"),
    "another context than planned": ({"ollama__loaded": [{**LOADED, "context_length": 8192}]}, "models"),
    "stale weights": ({"ollama__loaded": [{**LOADED, "digest": "old"}]}, "models"),
    "the server is silent": ({"ollama": {"version": None, "models": {}, "loaded": [], "error": "refused"}}, "models"),
    "more memory than planned": ({"gpus": [{**CARD, "held_mib": 12900}]}, "memory"),
    "a tenant": ({"gpus": [{**CARD, "others_mib": 11000}]}, "memory"),
    "no plan": ({"plan": None}, "memory"),
    "a unit that failed": ({"units": {"ollama.service": {**UNIT, "active_state": "failed"}}}, "units"),
    "a unit that is disabled": ({"units": {"ollama.service": {**UNIT, "unit_file_state": "disabled"}}}, "units"),
    "a unit that is gone": ({"units": {}}, "units"),
    "settings that are not the inventory's": ({"units": {"ollama.service": {**UNIT, "config": "beef"}}}, "units"),
    "a daemon-reload is due": ({"units": {"ollama.service": {**UNIT, "need_daemon_reload": True}}}, "units"),
    "open to the world": ({"listeners": {"11434": [{"address": "0.0.0.0", "command": "ollama"}]}}, "ports"),
    "a sandbox with a hole": ({"exposure": {"ollama.service": 9.5}}, "sandbox"),
    "the guard sleeps": ({"guard__age_s": 400.0}, "guard"),
    "the guard gave up": ({"guard__fence": {"rule": "trapped", "since": 1.0, "why": ""}}, "guard"),
    "the guard declared to act": ({"guard__action": "restart"}, "guard"),
    "the guard's budget is spent": ({"guard__spent": {**WELL["guard"]["spent"], "restart": {"hour": 3, "day": 3}}}, "guard"),
    "the guard has no state file": ({"guard__error": "damaged"}, "guard"),
    "a certificate that ends": ({"certificates": [{"path": "/c", "days": 3.0}]}, "certificates"),
    "a certificate that is none": ({"certificates": [{"path": "/c", "days": None}]}, "certificates"),
    "an old backup": ({"backup_age_days": 30.0}, "backups"),
    "no backup": ({"backup_age_days": None}, "backups"),
    "a changed file": ({"files": {"/etc/a": {"kind": "file", "owner": "root", "mode": "0644", "sha256": "22"}}}, "managed files"),
    "another mode": ({"files": {"/etc/a": {"kind": "file", "owner": "root", "mode": "0666", "sha256": "11"}}}, "managed files"),
    "a file that is gone": ({"files": {"/etc/a": {"kind": "absent", "owner": None, "mode": None, "sha256": None}}}, "managed files"),
    "a link astray": ({"links": {"/opt/ollama/current": "0.32.0"}}, "managed files"),
    "a folder that is gone": ({"directories": {"/opt/x": "absent"}}, "managed files"),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_fails_the_verdict_that_names_it_and_no_other(defect):
    changes, name = DEFECTS[defect]
    seen = changed(**changes)
    assert failed(seen) == [name]
    verdict = next(verdict for verdict in judge.judge("gpu1", seen, DECLARED)["verdicts"] if verdict["name"] == name)
    assert verdict["text"].endswith(".") or name == "models"


def test_a_host_without_a_gpu_that_needs_none_is_well():
    seen = changed(gpus=[], nvml="no_library", driver__problems=[{"code": "no_library", "message": "None.", "stops": "gpu"}], plan=None)
    seen["ollama"]["loaded"] = [{**LOADED, "size_vram": 0}]
    assert failed(seen, {**DECLARED, "gpu_required": False}) == []
    assert "driver" in failed(seen)


def test_what_is_held_is_asked_of_dpkg():
    lines = "nvidia-driver-cuda\t580.126.09-1\thi \tNVIDIA\nlibcuda1\t580.126.09-1\tii \tNVIDIA\nnvidia-driver-pinning-580\t580-1\thi \tNVIDIA\n"
    answer = subprocess.CompletedProcess([], 0, lines, "")
    assert observe.held_packages(lambda *_args, **_kwargs: answer) == {"version": "580.126.09", "unheld": ["libcuda1"], "error": None}


def test_the_sandbox_of_a_vendors_unit_is_not_ours_to_judge():
    wanted = {"state": "active", "enabled": True, "config": ""}
    assert (
        observe.is_sandboxed("a.service", wanted)
        and not observe.is_sandboxed("a.service", {**wanted, "vendor": True})
        and not observe.is_sandboxed("a.timer", wanted)
    )


def host(name, **digests):
    return {"host": name, "verdict": "pass", "verdicts": [], "facts": {}, "digests": digests}


def test_the_odd_one_out_is_named():
    made = across.across([host("a", qwen="1", own="7"), host("b", qwen="2"), host("c", qwen="1")])
    assert [one["verdict"] for one in made] == ["pass", "fail", "pass"]
    assert "qwen is 2 here" in made[1]["verdicts"][-1]["found"]
    # Of two that differ nobody knows which is right: both are named.
    assert [one["verdict"] for one in across.across([host("a", qwen="1"), host("b", qwen="2")])] == ["fail", "fail"]


def test_a_certificate_is_read_by_openssl():
    def answer(text):
        return lambda *_args, **_more: subprocess.CompletedProcess([], 0, text, b"")

    now = 1_800_000_000  # 15 January 2027, 08:00 UTC
    assert observe.certificate("/c", answer(b"notAfter=Jan 25 08:00:00 2027 GMT\n"), now)["days"] == 10.0
    assert observe.certificate("/c", answer(b""), now)["days"] is None


def test_a_unit_may_have_a_limit_of_its_own():
    seen = {**WELL, "exposure": {"nginx.service": 2.6}}

    def state(limit):
        declared = {**DECLARED, "units": {**DECLARED["units"], "nginx.service": {"state": "active", "enabled": True, "config": "", **limit}}}
        return next(verdict["state"] for verdict in judge.judge("gpu1", seen, declared)["verdicts"] if verdict["name"] == "sandbox")

    assert (state({}), state({"exposure": 3.0}), state({"exposure": 2.5})) == ("fail", "pass", "fail")


def test_exposure_is_systemds_figure():
    text = "→ Overall exposure level for ollama.service: 1.4 OK :-)\n".encode()
    assert observe.exposure("ollama.service", lambda *_args, **_more: subprocess.CompletedProcess([], 0, text, b"")) == 1.4
    assert observe.exposure("ollama.service", lambda *_args, **_more: subprocess.CompletedProcess([], 1, b"", b"")) is None


def test_a_file_is_read_as_it_is(tmp_path):
    (tmp_path / "a").write_text("x")
    (tmp_path / "a").chmod(0o640)
    state = observe.file_state(str(tmp_path / "a"), True)
    assert state["mode"] == "0640" and state["sha256"].startswith("2d711642")
    assert observe.file_state(str(tmp_path / "none"), True) == {"kind": "absent", "owner": None, "mode": None, "sha256": None}
    assert observe.newest_age_days(str(tmp_path), (tmp_path / "a").stat().st_mtime + 43200) == 0.5
    assert observe.newest_age_days("", 0) is None
