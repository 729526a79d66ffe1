# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The NVML simulator against the real client: nvidia-ml-py loads it as it loads NVIDIA's library."""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._gpu import library as gpu_library
from ansible_collections.gpufleet.llm.plugins.module_utils._gpu import shape

REPO = pathlib.Path(__file__).resolve().parents[3]
MIB = 1024 * 1024

pynvml = pytest.importorskip("pynvml")
pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")

# A program that stays: one JSON question a line on stdin, one JSON answer a line on stdout.
CLIENT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import pynvml
from module_utils._gpu import client, library, sample
handles = {}
for line in sys.stdin:
    name, args = json.loads(line)
    args = [handles.get(arg, arg) if isinstance(arg, str) else arg for arg in args]
    try:
        if name in ("sample", "bare"):
            value = sample.sample() if name == "sample" else client.read(library.Library(library.NAME), "libnvidia-ml")
        else:
            value = getattr(pynvml, name)(*args)
            if "GetHandle" in name:
                handles["h"], value = value, "h"
            elif name == "nvmlDeviceGetFieldValues":
                value = [[item.nvmlReturn, item.value.uiVal] for item in value]
            elif isinstance(value, list) and value and hasattr(value[0], "pid"):
                value = [item.__dict__ for item in value]
            elif hasattr(value, "_fields_"):
                value = {field: getattr(value, field) for field, _kind in value._fields_}
        print(json.dumps({"value": value}), flush=True)
    except pynvml.NVMLError as error:
        print(json.dumps({"error": error.value, "class": type(error).__name__, "text": str(error)}), flush=True)
"""

STATE = """\
driver 580.126.09
branch r580_00
cuda 13000
gpu
uuid GPU-a
name NVIDIA GeForce RTX 4090
pci 00000000:01:00.0
capability 8 9
total 24564
reserved 354
used 12764
load 97 55
temperature 61
power 312500
limit 450000
default 450000
enforced 400000
range 150000 600000
throttle 0x24
ecc -
persistence 1
pcie 3 4 8 16
replays 7
recovery 2
process 4711 12000
process 4712 -
graphics 4711 12000
graphics 99 30
gpu
uuid GPU-b
name NVIDIA GeForce RTX 4090
pci 00000000:41:00.0
capability 8 9
total 24564
reserved 354
used 1
end
"""


@pytest.fixture(scope="session")
def library():
    folder = REPO / ".cache" / "tests" / "nvml"
    subprocess.run([REPO / "lab/nvml/build.sh", folder], check=True)
    return folder


class Client:
    """A running program that has the simulator loaded."""

    def __init__(self, library, state):
        self.state = state
        environment = dict(os.environ, LD_LIBRARY_PATH=str(library), NVML_SIM_STATE=str(state))
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(REPO / "plugins")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def write(self, text):
        part = self.state.with_suffix(".part")
        part.write_bytes(text if isinstance(text, bytes) else text.encode())
        part.replace(self.state)

    def ask(self, name, *args):
        self.process.stdin.write(json.dumps([name, args]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the program died of {name}{args}"
        return json.loads(line)

    def value(self, name, *args):
        answer = self.ask(name, *args)
        assert "value" in answer, (name, answer)
        return answer["value"]

    def error(self, name, *args):
        answer = self.ask(name, *args)
        assert "error" in answer, (name, answer)
        return answer["error"]

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=10)


@pytest.fixture(scope="module")
def program(library, tmp_path_factory):
    running = Client(library, tmp_path_factory.mktemp("nvml") / "state")
    yield running
    running.close()


@pytest.fixture
def client(program):
    """The program as if it had just started: nothing initialised, no state file."""
    while "value" in program.ask("nvmlShutdown"):
        pass
    program.state.unlink(missing_ok=True)
    return program


@pytest.fixture
def ready(client):
    """With two cards, initialised, and a handle "h" of the first."""
    client.write(STATE)
    client.value("nvmlInit")
    client.value("nvmlDeviceGetHandleByIndex", 0)
    return client


def test_every_number_arrives(ready):
    gpu = {
        "nvmlDeviceGetName": "NVIDIA GeForce RTX 4090",
        "nvmlDeviceGetUUID": "GPU-a",
        "nvmlDeviceGetIndex": 0,
        "nvmlDeviceGetCudaComputeCapability": [8, 9],
        "nvmlDeviceGetPowerUsage": 312500,
        "nvmlDeviceGetPowerManagementLimit": 450000,
        "nvmlDeviceGetPowerManagementDefaultLimit": 450000,
        "nvmlDeviceGetEnforcedPowerLimit": 400000,
        "nvmlDeviceGetPowerManagementLimitConstraints": [150000, 600000],
        "nvmlDeviceGetCurrentClocksEventReasons": 0x24,
        "nvmlDeviceGetCurrentClocksThrottleReasons": 0x24,
        "nvmlDeviceGetPersistenceMode": 1,
        "nvmlDeviceGetCurrPcieLinkGeneration": 3,
        "nvmlDeviceGetMaxPcieLinkGeneration": 4,
        "nvmlDeviceGetCurrPcieLinkWidth": 8,
        "nvmlDeviceGetMaxPcieLinkWidth": 16,
        "nvmlDeviceGetPcieReplayCounter": 7,
        "nvmlDeviceGetUtilizationRates": {"gpu": 97, "memory": 55},
    }
    assert {name: ready.value(name, "h") for name in gpu} == gpu
    assert ready.value("nvmlDeviceGetTemperature", "h", 0) == 61
    assert ready.value("nvmlDeviceGetTemperatureV", "h", 0) == 61
    assert ready.value("nvmlDeviceGetCount") == 2
    assert ready.value("nvmlSystemGetDriverVersion") == "580.126.09"
    assert ready.value("nvmlSystemGetCudaDriverVersion") == 13000
    # A list of fields: the recovery action is known, another field is not supported.
    assert ready.value("nvmlDeviceGetFieldValues", "h", [230, 1]) == [[0, 2], [3, 0]]


def test_memory_counts_what_is_reserved_as_each_structure_does(ready):
    second = ready.value("nvmlDeviceGetMemoryInfo", "h", 0x02000028)
    assert {key: second[key] // MIB for key in ("total", "reserved", "used", "free")} == {
        "total": 24564,
        "reserved": 354,
        "used": 12764,
        "free": 11446,
    }
    first = ready.value("nvmlDeviceGetMemoryInfo", "h")
    assert {key: first[key] // MIB for key in ("total", "used", "free")} == {"total": 24564, "used": 13118, "free": 11446}
    assert ready.error("nvmlDeviceGetMemoryInfo", "h", 0x01000028) == 25


def test_processes_with_and_without_memory(ready):
    compute = ready.value("nvmlDeviceGetComputeRunningProcesses", "h")
    assert [(entry["pid"], entry["usedGpuMemory"]) for entry in compute] == [(4711, 12000 * MIB), (4712, None)]
    graphics = ready.value("nvmlDeviceGetGraphicsRunningProcesses", "h")
    assert [entry["pid"] for entry in graphics] == [4711, 99]
    ready.value("nvmlDeviceGetHandleByIndex", 1)
    assert ready.value("nvmlDeviceGetComputeRunningProcesses", "h") == []


def test_a_process_list_that_does_not_fit_says_how_many_there_are(library, tmp_path):
    """What nvml.h asks of the size query, and what another mock gets wrong."""
    script = (
        "import ctypes as c; n = c.CDLL('libnvidia-ml.so.1'); assert n.nvmlInit_v2() == 0\n"
        "h = c.c_void_p(); assert n.nvmlDeviceGetHandleByIndex_v2(0, c.byref(h)) == 0\n"
        "f = n.nvmlDeviceGetComputeRunningProcesses_v3; k = c.c_uint(0)\n"
        "print(f(h, c.byref(k), None), k.value)\n"
        "b = c.create_string_buffer(24 * 8); k = c.c_uint(1); print(f(h, c.byref(k), b), k.value)\n"
        "k = c.c_uint(8); print(f(h, c.byref(k), b), k.value)\n"
    )
    (tmp_path / "state").write_text(STATE)
    environment = dict(os.environ, LD_LIBRARY_PATH=str(library), NVML_SIM_STATE=str(tmp_path / "state"))
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["7 2", "7 2", "0 2"]


def test_what_a_4090_has_not(ready):
    for name in ("nvmlDeviceGetEccMode", "nvmlDeviceGetMigMode"):
        assert ready.error(name, "h") == 3
    assert ready.error("nvmlEventSetCreate") == 3
    # Not simulated at all: a client has to live with an older library.
    assert ready.error("nvmlDeviceGetSerial", "h") == 13


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (4, "NVMLError_NoPermission"),
        (9, "NVMLError_DriverNotLoaded"),
        (18, "NVMLError_LibRmVersionMismatch"),
        (999, "NVMLError_Unknown"),
    ],
)
def test_each_failure_of_init(client, code, kind):
    client.write(STATE.replace("cuda 13000", f"cuda 13000\ninit {code}"))
    answer = client.ask("nvmlInit")
    assert (answer["error"], answer["class"]) == (code, kind)
    assert client.error("nvmlDeviceGetCount") == 1
    assert client.value("nvmlSystemGetNVMLVersion") == "13.580.126.09"
    client.write(STATE)
    assert client.value("nvmlInit") is None


def test_no_library(tmp_path):
    environment = dict(os.environ, LD_LIBRARY_PATH=str(tmp_path))
    script = "import pynvml\ntry: pynvml.nvmlInit()\nexcept pynvml.NVMLError as error: print(error.value)"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "12"


def test_without_the_file_no_driver_is_loaded_but_the_library_has_a_version(client):
    assert client.error("nvmlInit") == 9
    assert client.value("nvmlSystemGetNVMLVersion") == "13.580.126.09"


@pytest.mark.parametrize(("key", "version"), [("driver", "570.86.10"), ("library", "590.48.01")])
def test_another_module_than_the_library_is_a_mismatch(client, key, version):
    old = "driver 580.126.09\n"
    client.write(STATE.replace(old, f"{key} {version}\n" if key == "driver" else f"{old}{key} {version}\n"))
    assert client.error("nvmlInit") == 18
    taken = client.value("sample")
    assert taken["state"] == "mismatch"
    assert taken["nvml_version"] == ("13.590.48.01" if key == "library" else "13.580.126.09")


def test_the_library_can_be_built_as_another_version(library, tmp_path):
    subprocess.run([REPO / "lab/nvml/build.sh", tmp_path, "550.163.01"], check=True)
    built = Client(tmp_path, tmp_path / "state")
    built.write(STATE)
    assert built.error("nvmlInit") == 18
    assert built.value("nvmlSystemGetNVMLVersion") == "12.550.163.01"
    built.close()


def test_the_hardware_changes_under_a_running_program(ready):
    ready.write(STATE.replace("used 12764", "used 20000").replace("process 4712 -", "process 4713 5"))
    assert ready.value("nvmlDeviceGetMemoryInfo", "h", 0x02000028)["used"] == 20000 * MIB
    assert [entry["pid"] for entry in ready.value("nvmlDeviceGetComputeRunningProcesses", "h")] == [4711, 4713]
    ready.write(STATE.replace("cuda 13000", "cuda 13000\ncalls 999"))
    assert ready.error("nvmlDeviceGetName", "h") == 999
    ready.write(STATE)
    assert ready.value("nvmlDeviceGetName", "h") == "NVIDIA GeForce RTX 4090"


def test_a_lost_card_takes_no_other_with_it(ready):
    ready.write(STATE.replace("uuid GPU-a", "lost 1\nuuid GPU-a"))
    assert ready.error("nvmlDeviceGetTemperature", "h", 0) == 15  # with a handle from before
    assert ready.error("nvmlDeviceGetHandleByIndex", 0) == 15
    assert ready.error("nvmlDeviceGetHandleByUUID", "GPU-a") == 15
    ready.value("nvmlDeviceGetHandleByUUID", "GPU-b")
    assert ready.value("nvmlDeviceGetUUID", "h") == "GPU-b"
    ready.write(STATE.replace("uuid GPU-a", "lost 2\nuuid GPU-a"))
    ready.value("nvmlDeviceGetHandleByIndex", 0)
    assert ready.error("nvmlDeviceGetUUID", "h") == 15


def test_wrong_arguments(ready):
    assert ready.error("nvmlDeviceGetHandleByIndex", 2) == 2
    assert ready.error("nvmlDeviceGetHandleByUUID", "GPU-none") == 6
    assert ready.value("nvmlDeviceGetHandleByPciBusId", "00000000:41:00.0") == "h"
    assert ready.error("nvmlDeviceGetTemperature", "h", 1) == 2


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"end",
        b"driver\n",
        STATE[: len(STATE) // 2].encode(),
        STATE.replace("end\n", "").encode(),
        STATE.replace("total 24564", "total many").encode(),
        STATE.replace("process 4711 12000", "process").encode(),
        STATE.replace("process 4711 12000", "process -3 12000").encode(),
        STATE.replace("uuid GPU-a", "uuid " + "x" * 500).encode(),
        STATE.replace("end\n", "process 1 1\n" * 300 + "end\n").encode(),
        ("gpu\n" * 40 + "end\n").encode(),
        STATE.encode().replace(b"driver", b"driver\0"),
        bytes(range(256)) * 400,
        b"x" * 200000,
    ],
)
def test_a_broken_file_is_an_unknown_error_and_no_crash(ready, garbage):
    ready.write(garbage)
    if garbage != b"end":
        assert ready.error("nvmlDeviceGetCount") == 999
        assert ready.error("nvmlDeviceGetName", "h") == 999
        assert ready.value("nvmlSystemGetNVMLVersion") == "13.580.126.09"
        assert ready.value("sample")["state"] == "error"
    else:  # whole, with no card in it
        assert ready.value("nvmlDeviceGetCount") == 0
        assert ready.error("nvmlDeviceGetName", "h") == 15
    ready.write(STATE)
    assert ready.value("nvmlDeviceGetName", "h") == "NVIDIA GeForce RTX 4090"


def test_init_and_shutdown_are_counted(client):
    client.write(STATE)
    for name in ("nvmlInit", "nvmlInit", "nvmlShutdown"):
        client.value(name)
    assert client.value("nvmlDeviceGetCount") == 2
    client.value("nvmlShutdown")
    assert client.error("nvmlDeviceGetCount") == 1
    assert client.error("nvmlShutdown") == 1


def test_a_sample_by_the_client_and_by_the_bare_library_agree(client):
    client.write(STATE)
    full, bare = client.value("sample"), client.value("bare")
    assert (full["source"], bare["source"]) == ("pynvml", "libnvidia-ml")
    for key in ("state", "driver_version", "nvml_version", "cuda_version"):
        assert full[key] == bare[key]
    same = (
        "index",
        "state",
        "uuid",
        "name",
        "pci_bus_id",
        "compute_capability",
        "total_mib",
        "reserved_mib",
        "used_mib",
        "free_mib",
        "gpu_util_percent",
        "memory_util_percent",
        "recovery_action",
    )
    assert [len(gpu["processes"]) for gpu in full["gpus"]] != [0, 0]
    for one, other in zip(full["gpus"], bare["gpus"]):
        assert {key: one[key] for key in same} == {key: other[key] for key in same}
        assert other["temperature_c"] is None
        ages = [(process.pop("age_s"), process) for gpu in (one, other) for process in gpu["processes"] or []]
        assert one["processes"] == other["processes"], ages
    assert full["gpus"][0]["recovery_action"] == "node_reboot"
    assert full["gpus"][0]["throttle_reasons"] == ["sw_power_cap", "sw_thermal_slowdown"]
    assert full["gpus"][1]["temperature_c"] is None  # the second card's file says nothing of it
    assert full["driver_branch"] == "r580_00"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (gpu_library.Library._Memory, pynvml.c_nvmlMemory_v2_t),
        (gpu_library.Library._Pci, pynvml.nvmlPciInfo_t),
        (gpu_library.Library._Process, pynvml.c_nvmlProcessInfo_v2_t),
        (gpu_library.Library._Utilization, pynvml.c_nvmlUtilization_t),
        (gpu_library.Library._Field, pynvml.c_nvmlFieldValue_t),
    ],
)
def test_our_few_structures_lie_in_memory_as_those_of_nvidia_do(ours, theirs):
    def layout(structure):
        return ctypes.sizeof(structure), [(getattr(structure, name).offset, getattr(structure, name).size) for name, *_kind in structure._fields_]

    assert layout(ours) == layout(theirs)


def test_a_process_list_that_grew_in_between_is_asked_again():
    library = gpu_library.Library("libnone.so")
    answers = [(shape.INSUFFICIENT_SIZE, 1), (shape.INSUFFICIENT_SIZE, 9), (shape.INSUFFICIENT_SIZE, 9), (shape.SUCCESS, 1)]

    def grown(_handle, room, entries):
        code, count = answers.pop(0)
        room._obj.value = count
        if code == shape.SUCCESS:
            entries[0].pid, entries[0].usedGpuMemory = 7, gpu_library.NOT_AVAILABLE
        return code

    # v3 is not there: as before release 510
    library._library = types.SimpleNamespace(nvmlDeviceGetComputeRunningProcesses_v2=grown)
    with pytest.raises(gpu_library.NvmlError) as told:
        library.nvmlDeviceGetComputeRunningProcesses("handle")
    assert told.value.value == shape.INSUFFICIENT_SIZE
    assert [vars(entry) for entry in library.nvmlDeviceGetComputeRunningProcesses("handle")] == [{"pid": 7, "usedGpuMemory": None}]
    assert not answers


@pytest.mark.parametrize("by", ["sample", "bare"])
def test_a_sample_of_each_fault(client, by):
    def state(text):
        client.write(text)
        return client.value(by)["state"]

    assert state(STATE.replace("cuda 13000", "cuda 13000\ninit 4")) == "no_permission"
    assert state(STATE.replace("cuda 13000", "cuda 13000\ninit 9")) == "no_driver"
    assert state(STATE.replace("cuda 13000", "cuda 13000\ninit 18")) == "mismatch"
    assert state(STATE.replace("cuda 13000", "cuda 13000\ninit 999")) == "error"
    assert state(STATE.replace("cuda 13000", "cuda 13000\ncalls 999")) == "error"
    assert state("driver 580.126.09\nend\n") == "no_gpu"
    assert state(STATE.replace("uuid GPU-a", "lost 1\nuuid GPU-a")) == "ok"
    lost, well = client.value(by)["gpus"]
    assert (lost["state"], lost["used_mib"], lost["processes"]) == ("lost", None, None)
    assert (well["state"], well["used_mib"]) == ("ok", 1)
    client.write(STATE.replace("uuid GPU-a", "lost 2\nuuid GPU-a"))
    assert client.value(by)["gpus"][0]["state"] == "lost"
    client.write(STATE.replace("total 24564", "total -"))
    assert [gpu["state"] for gpu in client.value(by)["gpus"]] == ["error", "error"]
