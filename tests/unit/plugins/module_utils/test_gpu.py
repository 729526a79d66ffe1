# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reader of the GPUs, by a made-up pynvml, by nvidia-smi's answers, and of /proc. The real client: tests/unit/lab."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.gpufleet.llm.plugins.module_utils._gpu import client, library, sample, shape, smi
from ansible_collections.gpufleet.llm.plugins.module_utils._host import programs

MIB = 1024 * 1024
PACKAGE = pathlib.Path(shape.__file__).parent


class NVMLError(Exception):
    def __init__(self, value):
        super().__init__(value)
        self.value = value


def fake(**functions):
    """A pynvml with one well RTX 4090; ``functions`` replace or, with None, take away; a number is an error code."""

    def answer(value):
        def call(*_args):
            if isinstance(value, NVMLError):
                raise value
            return value

        return call

    values = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlErrorString": "words",
        "nvmlSystemGetNVMLVersion": b"13.580.126.09",
        "nvmlSystemGetDriverVersion": "580.126.09",
        "nvmlSystemGetDriverBranch": types.SimpleNamespace(branch=b"r580_00"),
        "nvmlSystemGetCudaDriverVersion": 12080,
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetHandleByIndex": "handle",
        "nvmlDeviceGetUUID": "GPU-a",
        "nvmlDeviceGetName": b"NVIDIA GeForce RTX 4090",
        "nvmlDeviceGetPciInfo": types.SimpleNamespace(busId=b"00000000:01:00.0"),
        "nvmlDeviceGetCudaComputeCapability": (8, 9),
        "nvmlDeviceGetMemoryInfo": types.SimpleNamespace(total=24564 * MIB, reserved=354 * MIB, used=1000 * MIB, free=23210 * MIB),
        "nvmlDeviceGetComputeRunningProcesses": [],
        "nvmlDeviceGetGraphicsRunningProcesses": [],
    }
    made = types.SimpleNamespace(NVMLError=NVMLError)
    for name, value in dict(values, **functions).items():
        if callable(value):
            setattr(made, name, value)
        elif value is not None or name in ("nvmlInit", "nvmlShutdown"):
            setattr(made, name, answer(NVMLError(value) if isinstance(value, int) and name not in COUNTS else value))
    return made


COUNTS = ("nvmlDeviceGetCount", "nvmlSystemGetCudaDriverVersion", "nvmlDeviceGetPowerUsage")


def entry(pid, used):
    return types.SimpleNamespace(pid=pid, usedGpuMemory=used)


def test_a_well_card():
    taken = sample.sample(fake())
    assert taken["state"] == "ok"
    assert taken["message"] is None
    assert (taken["driver_version"], taken["nvml_version"], taken["driver_branch"]) == (
        "580.126.09",
        "13.580.126.09",
        "r580_00",
    )
    assert taken["cuda_version"] == "12.8"
    gpu = taken["gpus"][0]
    assert (gpu["total_mib"], gpu["reserved_mib"], gpu["used_mib"], gpu["free_mib"]) == (24564, 354, 1000, 23210)
    assert (gpu["name"], gpu["pci_bus_id"]) == ("NVIDIA GeForce RTX 4090", "00000000:01:00.0")
    assert gpu["processes"] == []


def test_what_is_not_there_is_none_and_never_zero():
    """An old client and an old library: every function that can be absent is absent."""
    gpu = sample.sample(fake(nvmlDeviceGetComputeRunningProcesses=None, nvmlDeviceGetCudaComputeCapability=None))["gpus"][0]
    told = {"index", "state", "uuid", "name", "pci_bus_id", "total_mib", "reserved_mib", "used_mib", "free_mib"}
    assert {key for key, value in gpu.items() if value is not None} == told
    assert set(gpu) == set(shape.EMPTY_GPU)


def test_the_shape_is_the_one_of_the_docstring():
    for key in [*shape.EMPTY_GPU, *sample.sample(fake()), *shape.process(1, "compute", None, "/nowhere")]:
        assert f'"{key}"' in shape.__doc__, key


@pytest.mark.parametrize(
    ("code", "state"),
    [(12, "no_library"), (9, "no_driver"), (18, "mismatch"), (4, "no_permission"), (999, "error"), (17, "error")],
)
def test_each_failure_of_init_has_a_state_and_a_text(code, state):
    taken = sample.sample(fake(nvmlInit=code))
    assert (taken["state"], taken["code"], taken["gpus"]) == (state, code, [])
    assert len(taken["message"]) > 60
    # The library's version is known even without a driver.
    assert taken["nvml_version"] == "13.580.126.09"


def test_no_gpu():
    assert sample.sample(fake(nvmlDeviceGetCount=0))["state"] == "no_gpu"


def test_memory_in_the_first_structure_only():
    def memory(_handle, version=None):
        if version:
            raise NVMLError(13)
        return types.SimpleNamespace(total=24564 * MIB, used=1354 * MIB, free=23210 * MIB)

    gpu = sample.sample(fake(nvmlDeviceGetMemoryInfo=memory))["gpus"][0]
    assert (gpu["reserved_mib"], gpu["used_mib"], gpu["state"]) == (None, 1354, "ok")


def test_a_card_that_is_lost_in_the_middle_of_the_reading():
    gpu = sample.sample(fake(nvmlDeviceGetMemoryInfo=15))["gpus"][0]
    assert (gpu["state"], gpu["uuid"], gpu["used_mib"]) == ("lost", "GPU-a", None)
    assert "power cycle" in gpu["message"]
    assert sample.sample(fake(nvmlDeviceGetHandleByIndex=15))["gpus"][0]["state"] == "lost"
    assert sample.sample(fake(nvmlDeviceGetComputeRunningProcesses=15))["gpus"][0]["state"] == "lost"


def test_a_card_that_cannot_be_opened_or_does_not_tell_its_memory():
    assert sample.sample(fake(nvmlDeviceGetHandleByIndex=4))["gpus"][0]["message"].startswith("GPU 0 could not be opened")
    assert sample.sample(fake(nvmlDeviceGetMemoryInfo=999))["gpus"][0]["state"] == "error"


def test_a_process_list_that_grows_is_asked_for_again():
    answers = [NVMLError(7), NVMLError(7), [entry(5, 12 * MIB)]]

    def processes(_handle):
        answer = answers.pop(0)
        if isinstance(answer, NVMLError):
            raise answer
        return answer

    gpu = sample.sample(fake(nvmlDeviceGetComputeRunningProcesses=processes))["gpus"][0]
    assert [(process["pid"], process["used_mib"]) for process in gpu["processes"]] == [(5, 12)]
    # One that never holds still could not be read.
    assert sample.sample(fake(nvmlDeviceGetComputeRunningProcesses=7))["gpus"][0]["processes"] is None


def test_processes_are_merged_by_pid():
    nvml = fake(
        nvmlDeviceGetComputeRunningProcesses=[entry(5, 12 * MIB), entry(6, None), entry(7, 0)],
        nvmlDeviceGetGraphicsRunningProcesses=[entry(5, 12 * MIB), entry(9, 4 * MIB)],
    )
    taken = sample.sample(nvml)
    found = {process["pid"]: (process["type"], process["used_mib"]) for process in sample.processes(taken)}
    # 0 MiB is what drivers say of pids that they cannot look into: not known.
    assert found == {5: ("both", 12), 6: ("compute", None), 7: ("compute", None), 9: ("graphics", 4)}
    assert {process["gpu_uuid"] for process in sample.processes(taken)} == {"GPU-a"}
    assert sample.processes(sample.sample(fake(nvmlDeviceGetComputeRunningProcesses=3))) is None
    assert sample.processes(sample.sample(fake(nvmlInit=9))) is None


def test_the_older_name_of_the_throttle_reasons():
    gpu = sample.sample(fake(nvmlDeviceGetCurrentClocksThrottleReasons=lambda _handle: 0x48))["gpus"][0]
    assert gpu["throttle_reasons"] == ["hw_slowdown", "hw_thermal_slowdown"]
    assert gpu["throttled"] is True


@pytest.mark.parametrize(("bits", "slowed"), [(0, False), (1, False), (0x113, False), (4, True), (0x21, True), (None, None)])
def test_idle_and_set_clocks_are_no_throttling(bits, slowed):
    assert shape.throttled(shape.throttle_reasons(bits)) is slowed


def test_nvml_is_shut_down_whatever_happens():
    calls = []
    nvml = fake(nvmlDeviceGetCount=lambda: 1 / 0, nvmlShutdown=lambda: calls.append("shutdown"))
    with pytest.raises(ZeroDivisionError):
        sample.sample(nvml)
    assert calls == ["shutdown"]


@given(st.integers(0, 1 << 62))
def test_mib_is_a_whole_number(count):
    assert abs(shape.mib(count) * MIB - count) <= MIB // 2


# ---- nvidia-smi ----


def answers(gpus, apps="", code=0, refuse=()):
    """A subprocess.run that answers as nvidia-smi."""
    asked = []

    def run(command, **_kwargs):
        asked.append(command)
        query = command[1]
        if query.startswith("--query-compute-apps"):
            return subprocess.CompletedProcess(command, 0, stdout=apps)
        for field in refuse:
            if field in query.partition("=")[2].split(","):
                return subprocess.CompletedProcess(command, 2, stdout=f'Field "{field}" is not a valid field to query.\n')
        wanted = query.partition("=")[2].split(",")
        rows = [", ".join(row.get(field, "[N/A]") for field in wanted) if isinstance(row, dict) else row for row in gpus]
        return subprocess.CompletedProcess(command, code, stdout="\n".join(rows) + "\n")

    run.asked = asked
    return run


CARD = {
    "index": "0",
    "uuid": "GPU-a",
    "name": "NVIDIA GeForce RTX 4090",
    "pci.bus_id": "00000000:01:00.0",
    "driver_version": "550.163.01",
    "compute_cap": "8.9",
    "memory.total": "24564",
    "memory.reserved": "354",
    "memory.used": "1000",
    "memory.free": "23210",
    "temperature.gpu": "61",
    "power.draw": "312.55",
    "clocks_throttle_reasons.active": "0x0000000000000004",
    "ecc.mode.current": "Disabled",
    "persistence_mode": "Enabled",
    "utilization.gpu": "[Not Supported]",
}


def test_nvidia_smi_gives_the_same_shape():
    run = answers([CARD], "GPU-a, 4711, 900\nGPU-a, 4712, [N/A]\nGPU-other, 1, 1\n")
    taken = smi.read(run, "/nowhere")
    assert set(taken) == set(sample.sample(fake()))
    assert (taken["state"], taken["source"], taken["driver_version"]) == ("ok", "nvidia-smi", "550.163.01")
    gpu = taken["gpus"][0]
    assert set(gpu) == set(shape.EMPTY_GPU)
    assert (gpu["index"], gpu["total_mib"], gpu["used_mib"], gpu["power_w"]) == (0, 24564, 1000, 312.55)
    assert (gpu["ecc_enabled"], gpu["mig_enabled"], gpu["persistence_enabled"]) == (False, None, True)
    assert (gpu["throttle_reasons"], gpu["throttled"], gpu["gpu_util_percent"]) == (["sw_power_cap"], True, None)
    assert [(process["pid"], process["used_mib"]) for process in gpu["processes"]] == [(4711, 900), (4712, None)]


def test_an_older_nvidia_smi_lacks_fields():
    run = answers([CARD], refuse=("memory.reserved", "compute_cap"))
    gpu = smi.read(run, "/nowhere")["gpus"][0]
    assert (gpu["total_mib"], gpu["reserved_mib"], gpu["compute_capability"]) == (24564, None, None)
    assert len(run.asked) == 4  # two refusals, the answer, the processes


@pytest.mark.parametrize(("code", "state"), [(9, "no_driver"), (12, "no_library"), (18, "mismatch"), (4, "no_permission"), (255, "error")])
def test_nvidia_smi_exits_with_the_code_of_nvml(code, state):
    taken = smi.read(answers(["NVIDIA-SMI has failed"], code=code), "/nowhere")
    assert (taken["state"], taken["gpus"]) == (state, [])


def test_nvidia_smi_with_a_lost_card():
    text = "Unable to determine the device handle for GPU 0000:41:00.0: GPU is lost.  Reboot the system to recover this GPU"
    well, lost = smi.read(answers([CARD, text], code=15), "/nowhere")["gpus"]
    assert (well["state"], lost["state"], lost["pci_bus_id"], lost["used_mib"]) == ("ok", "lost", "0000:41:00.0", None)
    row = dict(CARD, **{"memory.total": "[GPU is lost]", "memory.used": "[GPU is lost]"})
    assert smi.read(answers([row]), "/nowhere")["gpus"][0]["state"] == "lost"


def test_no_nvidia_smi_then_the_library_is_asked():
    def run(command, **_kwargs):
        raise FileNotFoundError(command[0])

    def slow(command, **_kwargs):
        raise subprocess.TimeoutExpired(command, 60)

    assert smi.read(run) is None
    assert smi.read(slow) is None
    taken = client.read(library.Library("libnot-there.so.1"), "libnvidia-ml")
    assert (taken["state"], taken["code"]) == ("no_library", 12)


@given(st.text(max_size=200), st.integers(0, 255))
def test_nvidia_smi_may_say_anything(text, code):
    def run(command, **_kwargs):
        return subprocess.CompletedProcess(command, code, stdout=text)

    taken = smi.read(run, "/nowhere")
    assert taken["state"] in {"ok", "no_gpu", "error", *shape.STATES.values()}


# ---- stand-alone ----


def test_it_runs_without_the_collection_and_without_a_client(tmp_path):
    """As the guard has it: whole packages under another name, no pynvml."""
    programs.install(str(tmp_path / "guard"), programs.sources("vram_guard"), sys.executable)
    script = (
        "import sys; sys.modules['pynvml'] = None; sys.path.insert(0, sys.argv[1])\n"
        "from gpufleet_llm._gpu import sample\n"
        "def no(*a, **k): raise FileNotFoundError\n"
        "print(sample.sample(run=no, library_name='libnot-there.so.1')['state'])\n"
    )
    command = [sys.executable, "-I", "-S", "-c", script, tmp_path / "guard"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "no_library\n"


@pytest.mark.parametrize("name", ["_gpu/client.py", "_gpu/sample.py", "_driver/state.py"])
def test_only_the_standard_library_at_import(name):
    tree = ast.parse((PACKAGE.parent / name).read_text(encoding="utf-8"))
    roots = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).partition(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.level)
    }
    assert roots <= set(sys.stdlib_module_names)
