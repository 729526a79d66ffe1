# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The reader of the GPUs, by a made-up pynvml, by nvidia-smi's answers, and of /proc. The real client: tests/unit/lab."""

from __future__ import annotations

import ast
import os
import pathlib
import subprocess
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.gpufleet.llm.plugins.module_utils._gpu import nvml as gpu_nvml

MIB = 1024 * 1024
SOURCE = pathlib.Path(gpu_nvml.__file__)


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
    taken = gpu_nvml.sample(fake())
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
    gpu = gpu_nvml.sample(fake(nvmlDeviceGetComputeRunningProcesses=None, nvmlDeviceGetCudaComputeCapability=None))["gpus"][0]
    told = {"index", "state", "uuid", "name", "pci_bus_id", "total_mib", "reserved_mib", "used_mib", "free_mib"}
    assert {key for key, value in gpu.items() if value is not None} == told
    assert set(gpu) == set(gpu_nvml.EMPTY_GPU)


def test_the_shape_is_the_one_of_the_docstring():
    for key in [*gpu_nvml.EMPTY_GPU, *gpu_nvml.sample(fake()), *gpu_nvml._process(1, "compute", None, "/nowhere")]:
        assert f'"{key}"' in gpu_nvml.__doc__, key


@pytest.mark.parametrize(
    ("code", "state"),
    [(12, "no_library"), (9, "no_driver"), (18, "mismatch"), (4, "no_permission"), (999, "error"), (17, "error")],
)
def test_each_failure_of_init_has_a_state_and_a_text(code, state):
    taken = gpu_nvml.sample(fake(nvmlInit=code))
    assert (taken["state"], taken["code"], taken["gpus"]) == (state, code, [])
    assert len(taken["message"]) > 60
    # The library's version is known even without a driver.
    assert taken["nvml_version"] == "13.580.126.09"


def test_no_gpu():
    assert gpu_nvml.sample(fake(nvmlDeviceGetCount=0))["state"] == "no_gpu"


def test_memory_in_the_first_structure_only():
    def memory(_handle, version=None):
        if version:
            raise NVMLError(13)
        return types.SimpleNamespace(total=24564 * MIB, used=1354 * MIB, free=23210 * MIB)

    gpu = gpu_nvml.sample(fake(nvmlDeviceGetMemoryInfo=memory))["gpus"][0]
    assert (gpu["reserved_mib"], gpu["used_mib"], gpu["state"]) == (None, 1354, "ok")


def test_a_card_that_is_lost_in_the_middle_of_the_reading():
    gpu = gpu_nvml.sample(fake(nvmlDeviceGetMemoryInfo=15))["gpus"][0]
    assert (gpu["state"], gpu["uuid"], gpu["used_mib"]) == ("lost", "GPU-a", None)
    assert "power cycle" in gpu["message"]
    assert gpu_nvml.sample(fake(nvmlDeviceGetHandleByIndex=15))["gpus"][0]["state"] == "lost"
    assert gpu_nvml.sample(fake(nvmlDeviceGetComputeRunningProcesses=15))["gpus"][0]["state"] == "lost"


def test_a_card_that_cannot_be_opened_or_does_not_tell_its_memory():
    assert gpu_nvml.sample(fake(nvmlDeviceGetHandleByIndex=4))["gpus"][0]["message"].startswith("GPU 0 could not be opened")
    assert gpu_nvml.sample(fake(nvmlDeviceGetMemoryInfo=999))["gpus"][0]["state"] == "error"


def test_a_process_list_that_grows_is_asked_for_again():
    answers = [NVMLError(7), NVMLError(7), [entry(5, 12 * MIB)]]

    def processes(_handle):
        answer = answers.pop(0)
        if isinstance(answer, NVMLError):
            raise answer
        return answer

    gpu = gpu_nvml.sample(fake(nvmlDeviceGetComputeRunningProcesses=processes))["gpus"][0]
    assert [(process["pid"], process["used_mib"]) for process in gpu["processes"]] == [(5, 12)]
    # One that never holds still could not be read.
    assert gpu_nvml.sample(fake(nvmlDeviceGetComputeRunningProcesses=7))["gpus"][0]["processes"] is None


def test_processes_are_merged_by_pid():
    nvml = fake(
        nvmlDeviceGetComputeRunningProcesses=[entry(5, 12 * MIB), entry(6, None), entry(7, 0)],
        nvmlDeviceGetGraphicsRunningProcesses=[entry(5, 12 * MIB), entry(9, 4 * MIB)],
    )
    taken = gpu_nvml.sample(nvml)
    found = {process["pid"]: (process["type"], process["used_mib"]) for process in gpu_nvml.processes(taken)}
    # 0 MiB is what drivers say of pids that they cannot look into: not known.
    assert found == {5: ("both", 12), 6: ("compute", None), 7: ("compute", None), 9: ("graphics", 4)}
    assert {process["gpu_uuid"] for process in gpu_nvml.processes(taken)} == {"GPU-a"}
    assert gpu_nvml.processes(gpu_nvml.sample(fake(nvmlDeviceGetComputeRunningProcesses=3))) is None
    assert gpu_nvml.processes(gpu_nvml.sample(fake(nvmlInit=9))) is None


def test_the_older_name_of_the_throttle_reasons():
    gpu = gpu_nvml.sample(fake(nvmlDeviceGetCurrentClocksThrottleReasons=lambda _handle: 0x48))["gpus"][0]
    assert gpu["throttle_reasons"] == ["hw_slowdown", "hw_thermal_slowdown"]
    assert gpu["throttled"] is True


@pytest.mark.parametrize(("bits", "slowed"), [(0, False), (1, False), (0x113, False), (4, True), (0x21, True), (None, None)])
def test_idle_and_set_clocks_are_no_throttling(bits, slowed):
    assert gpu_nvml.throttled(gpu_nvml.throttle_reasons(bits)) is slowed


def test_nvml_is_shut_down_whatever_happens():
    calls = []
    nvml = fake(nvmlDeviceGetCount=lambda: 1 / 0, nvmlShutdown=lambda: calls.append("shutdown"))
    with pytest.raises(ZeroDivisionError):
        gpu_nvml.sample(nvml)
    assert calls == ["shutdown"]


@given(st.integers(0, 1 << 62))
def test_mib_is_a_whole_number(count):
    assert abs(gpu_nvml._mib(count) * MIB - count) <= MIB // 2


# ---- nvidia-smi ----


def smi(gpus, apps="", code=0, refuse=()):
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
    run = smi([CARD], "GPU-a, 4711, 900\nGPU-a, 4712, [N/A]\nGPU-other, 1, 1\n")
    taken = gpu_nvml.read_smi(run, "/nowhere")
    assert set(taken) == set(gpu_nvml.sample(fake()))
    assert (taken["state"], taken["source"], taken["driver_version"]) == ("ok", "nvidia-smi", "550.163.01")
    gpu = taken["gpus"][0]
    assert set(gpu) == set(gpu_nvml.EMPTY_GPU)
    assert (gpu["index"], gpu["total_mib"], gpu["used_mib"], gpu["power_w"]) == (0, 24564, 1000, 312.55)
    assert (gpu["ecc_enabled"], gpu["mig_enabled"], gpu["persistence_enabled"]) == (False, None, True)
    assert (gpu["throttle_reasons"], gpu["throttled"], gpu["gpu_util_percent"]) == (["sw_power_cap"], True, None)
    assert [(process["pid"], process["used_mib"]) for process in gpu["processes"]] == [(4711, 900), (4712, None)]


def test_an_older_nvidia_smi_lacks_fields():
    run = smi([CARD], refuse=("memory.reserved", "compute_cap"))
    gpu = gpu_nvml.read_smi(run, "/nowhere")["gpus"][0]
    assert (gpu["total_mib"], gpu["reserved_mib"], gpu["compute_capability"]) == (24564, None, None)
    assert len(run.asked) == 4  # two refusals, the answer, the processes


@pytest.mark.parametrize(("code", "state"), [(9, "no_driver"), (12, "no_library"), (18, "mismatch"), (4, "no_permission"), (255, "error")])
def test_nvidia_smi_exits_with_the_code_of_nvml(code, state):
    taken = gpu_nvml.read_smi(smi(["NVIDIA-SMI has failed"], code=code), "/nowhere")
    assert (taken["state"], taken["gpus"]) == (state, [])


def test_nvidia_smi_with_a_lost_card():
    text = "Unable to determine the device handle for GPU 0000:41:00.0: GPU is lost.  Reboot the system to recover this GPU"
    well, lost = gpu_nvml.read_smi(smi([CARD, text], code=15), "/nowhere")["gpus"]
    assert (well["state"], lost["state"], lost["pci_bus_id"], lost["used_mib"]) == ("ok", "lost", "0000:41:00.0", None)
    row = dict(CARD, **{"memory.total": "[GPU is lost]", "memory.used": "[GPU is lost]"})
    assert gpu_nvml.read_smi(smi([row]), "/nowhere")["gpus"][0]["state"] == "lost"


def test_no_nvidia_smi_then_the_library_is_asked():
    def run(command, **_kwargs):
        raise FileNotFoundError(command[0])

    def slow(command, **_kwargs):
        raise subprocess.TimeoutExpired(command, 60)

    assert gpu_nvml.read_smi(run) is None
    assert gpu_nvml.read_smi(slow) is None
    taken = gpu_nvml.read(gpu_nvml.BareLibrary("libnot-there.so.1"), "libnvidia-ml")
    assert (taken["state"], taken["code"]) == ("no_library", 12)


@given(st.text(max_size=200), st.integers(0, 255))
def test_nvidia_smi_may_say_anything(text, code):
    def run(command, **_kwargs):
        return subprocess.CompletedProcess(command, code, stdout=text)

    taken = gpu_nvml.read_smi(run, "/nowhere")
    assert taken["state"] in {"ok", "no_gpu", "error", *gpu_nvml.STATES.values()}


# ---- processes in /proc ----


@pytest.mark.parametrize(
    ("text", "init", "unit"),
    [
        ("0::/system.slice/ollama.service\n", "0::/init.scope\n", "ollama.service"),
        ("0::/system.slice/ollama.service/runner\n", "", "ollama.service"),
        ("4:memory:/x.service\n1:name=systemd:/system.slice/ollama.service\n0::/\n", "", "ollama.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/a.service\n", "", "user@1000.service"),
        (
            "0::/system.slice/docker-ab.scope/system.slice/ollama.service\n",
            "0::/system.slice/docker-ab.scope/init.scope\n",
            "ollama.service",
        ),
        ("0::/system.slice/docker-ab.scope\n", "0::/init.scope\n", "docker-ab.scope"),
        ("1:name=systemd:/docker/ab\n", "", None),
        ("0::/\n", "", None),
        ("", "", None),
        ("nonsense", "nonsense", None),
    ],
)
def test_the_unit_of_a_cgroup(text, init, unit):
    assert gpu_nvml.unit_of(text, init) == unit


def test_a_process_of_this_host():
    found = gpu_nvml.describe_process(os.getpid())
    assert (found["ppid"], found["uid"]) == (os.getppid(), os.getuid())
    assert os.path.realpath(found["exe"]) == os.path.realpath(sys.executable)
    assert 0 <= found["age_s"] < 100000
    assert set(gpu_nvml.describe_process(2**22 + 1).values()) == {None}


@given(st.text(max_size=80))
def test_any_cgroup_text(text):
    assert gpu_nvml.unit_of(text, text) is None or gpu_nvml.unit_of(text, text).endswith((".service", ".scope"))


# ---- stand-alone ----


def test_it_runs_without_the_collection_and_without_a_client(tmp_path):
    """As the guard has it: one file in a package of another name, no pynvml."""
    package = tmp_path / "gpufleet_llm" / "_gpu"
    package.mkdir(parents=True)
    (package / "nvml.py").write_text(SOURCE.read_text(encoding="utf-8"), encoding="utf-8")
    script = (
        "import sys; sys.modules['pynvml'] = None; sys.path.insert(0, sys.argv[1])\n"
        "from gpufleet_llm._gpu import nvml\n"
        "def no(*a, **k): raise FileNotFoundError\n"
        "print(nvml.sample(run=no, library='libnot-there.so.1')['state'])\n"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "no_library\n"


@pytest.mark.parametrize("name", ["_gpu/nvml.py", "_driver/state.py"])
def test_only_the_standard_library_at_import(name):
    tree = ast.parse((SOURCE.parents[1] / name).read_text(encoding="utf-8"))
    roots = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).partition(".")[0]
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert roots <= set(sys.stdlib_module_names)
