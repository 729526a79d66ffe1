# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that the unit of Ollama runs first."""

from __future__ import annotations

import importlib.util
import types

import pytest


@pytest.fixture
def wait(repo, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("wait_for_gpu", repo / "roles/ollama/files/wait_for_gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    devices = [tmp_path / "nvidiactl", tmp_path / "nvidia-uvm"]
    for device in devices:
        device.touch()
    monkeypatch.setattr(module, "DEVICES", tuple(map(str, devices)))
    monkeypatch.setattr(module.time, "sleep", lambda _seconds: None)
    return module


def library(init=0, count_code=0, count=1, driver=b"580.105.08"):
    def device_count(pointer):
        pointer._obj.value = count
        return count_code

    def driver_version(buffer, length):
        assert length == 80
        buffer.value = driver
        return 0

    return types.SimpleNamespace(
        nvmlInit_v2=lambda: init,
        nvmlSystemGetDriverVersion=driver_version,
        nvmlDeviceGetCount_v2=device_count,
        nvmlShutdown=lambda: 0,
    )


def test_a_gpu_that_can_be_used(wait, monkeypatch):
    monkeypatch.setattr(wait.ctypes, "CDLL", lambda _name: library())
    assert wait.main(0) == 0


def test_a_missing_device_is_named(wait, monkeypatch, capsys):
    monkeypatch.setattr(wait, "DEVICES", (*wait.DEVICES, "/dev/none-such"))
    assert wait.main(0) == 1
    assert "/dev/none-such missing" in capsys.readouterr().err


@pytest.mark.parametrize(("code", "word"), [(9, "not loaded"), (18, "reboot"), (15, "Xid 79"), (999, "999")])
def test_what_nvml_answers_is_said(wait, monkeypatch, capsys, code, word):
    monkeypatch.setattr(wait.ctypes, "CDLL", lambda _name: library(init=code))
    assert wait.main(0) == 1
    assert word in capsys.readouterr().err


def test_no_library_and_no_gpu(wait, monkeypatch, capsys):
    def missing(_name):
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    monkeypatch.setattr(wait.ctypes, "CDLL", missing)
    assert wait.main(0) == 1
    monkeypatch.setattr(wait.ctypes, "CDLL", lambda _name: library(count=0))
    assert wait.main(0) == 1
    said = capsys.readouterr().err
    assert "cannot be loaded" in said and "counts no GPU" in said


@pytest.mark.parametrize(("driver", "oldest", "serves"), [(b"535.247.01", 550, False), (b"550.54.14", 550, True), (b"535.247.01", 0, True), (b"", 550, True)])
def test_a_driver_that_is_too_old_is_said(wait, monkeypatch, capsys, driver, oldest, serves):
    monkeypatch.setattr(wait.ctypes, "CDLL", lambda _name: library(driver=driver))
    assert wait.main(0, oldest) == (0 if serves else 1)
    said = capsys.readouterr().err
    assert serves or ("535.247.01" in said and "550 or newer" in said)


def test_it_waits_for_a_driver_that_comes_late(wait, monkeypatch):
    answers = [9, 9, 0]
    monkeypatch.setattr(wait.ctypes, "CDLL", lambda _name: library(init=answers.pop(0)))
    assert wait.main(60) == 0
    assert answers == []
