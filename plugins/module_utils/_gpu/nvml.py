# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
# ruff: noqa: N802  (BareLibrary has the names of nvml.h)
"""What the GPUs of this host say of themselves, in one dict of one shape.

``sample()`` asks, in this order, the module pynvml of nvidia-ml-py, the program nvidia-smi, and
the bare libnvidia-ml.so.1 (names, memory, processes, load). It raises nothing for a host
without GPU, driver or library: it says so in ``state``. Whatever could not be read is None and
never 0. Units are in the names: MiB (2^20 bytes), W, °C, percent, s.

The sample::

    {
      "state": "ok" | "no_library" | "no_driver" | "mismatch" | "no_permission" | "no_gpu" | "error",
      "message": None | str,           # for an operator; None only when state is ok
      "code": int | None,              # the NVML code behind the state (0 ok, 12, 9, 18, 4, 999 …)
      "source": "pynvml" | "nvidia-smi" | "libnvidia-ml",   # who answered
      "driver_version": "580.126.09" | None,     # as the library reports it
      "driver_branch": "r580_00" | None,
      "nvml_version": "13.580.126.09" | None,    # of the library; known without a driver, too
      "cuda_version": "13.0" | None,             # highest CUDA the driver serves
      "gpus": [GPU, …],                # empty unless state is ok
    }

A GPU::

    {
      "index": 0,                      # NVML's order, which is that of the PCI bus
      "state": "ok" | "lost" | "error",   # lost: fallen off the bus; what was still read is kept
      "message": None | str,
      "uuid": str | None, "name": str | None,
      "pci_bus_id": "00000000:01:00.0" | None,
      "compute_capability": "8.9" | None,
      "total_mib": int | None,         # of the card; usable is total_mib - reserved_mib
      "reserved_mib": int | None,      # held by driver and firmware; None: memory could only be read the
                                       # old way (NVML's first structure), then used_mib includes it
      "used_mib": int | None, "free_mib": int | None,
      "gpu_util_percent": int | None, "memory_util_percent": int | None,
      "temperature_c": int | None,
      "power_w": float | None, "power_limit_w": float | None, "power_default_limit_w": float | None,
      "power_enforced_limit_w": float | None, "power_min_limit_w": float | None,
      "power_max_limit_w": float | None,
      "throttle_reasons": [str, …] | None,   # of THROTTLE_REASONS; [] is "none", None "not read"
      "throttled": bool | None,        # a reason other than idle and set clocks is among them
      "ecc_enabled": bool | None, "mig_enabled": bool | None,   # None: also "the card has no such thing"
      "persistence_enabled": bool | None,
      "pcie_generation": int | None, "pcie_generation_max": int | None,
      "pcie_width": int | None, "pcie_width_max": int | None, "pcie_replays": int | None,
      "recovery_action": str | None,   # of RECOVERY_ACTIONS, "none" when the GPU is well
      "processes": [PROCESS, …] | None,   # None: could not be read
    }

A process (from /proc, None where it cannot be read or the process is gone)::

    {
      "pid": int, "type": "compute" | "graphics" | "both",
      "used_mib": int | None,          # None: the driver does not tell
      "unit": "ollama.service" | None, # systemd unit of its cgroup
      "ppid": int | None, "uid": int | None, "comm": str | None, "exe": str | None,
      "age_s": float | None,           # since its start; with pid it tells a reused pid
    }

Stand-alone: nothing but the standard library; pynvml is imported late and may be absent.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re

MIB = 1024 * 1024

# Return codes of nvml.h that decide a state.
SUCCESS = 0
NOT_SUPPORTED = 3
NO_PERMISSION = 4
INSUFFICIENT_SIZE = 7
DRIVER_NOT_LOADED = 9
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
VERSION_MISMATCH = 18
UNKNOWN = 999

STATES = {
    DRIVER_NOT_LOADED: "no_driver",
    LIBRARY_NOT_FOUND: "no_library",
    NO_PERMISSION: "no_permission",
    VERSION_MISMATCH: "mismatch",
}

MESSAGES = {
    "no_library": (
        "libnvidia-ml.so.1 was not found, so the NVIDIA driver's libraries are not installed; install the driver, or set ollama_gpu_required to false."
    ),
    "no_driver": (
        "The NVIDIA library is installed, but the kernel module nvidia is not loaded; "
        "load it (modprobe nvidia) or look for Secure Boot, nouveau or a failed DKMS build."
    ),
    "mismatch": (
        "The NVIDIA library and the loaded kernel module are of different versions, as after an upgrade without "
        "a reboot: no new process can use the GPU; reboot, or unload and load the nvidia modules."
    ),
    "no_permission": ("The NVIDIA library was refused access to the device files; run as root or as a member of the group that NVreg_DeviceFileGID names."),
    "no_gpu": "The NVIDIA driver is loaded and answers, but it drives no GPU; look for the card in lspci and dmesg.",
}

LOST = "GPU {} has fallen off the bus; this host has to be rebooted, often by a power cycle."
NO_MEMORY = "GPU {} does not tell its memory; look into the kernel log for lines of NVRM and Xid."

# nvmlClocksEventReasons of nvml.h.
THROTTLE_REASONS = (
    (0x001, "gpu_idle"),
    (0x002, "application_clocks"),
    (0x004, "sw_power_cap"),
    (0x008, "hw_slowdown"),
    (0x010, "sync_boost"),
    (0x020, "sw_thermal_slowdown"),
    (0x040, "hw_thermal_slowdown"),
    (0x080, "hw_power_brake"),
    (0x100, "display_clocks"),
)
NOT_THROTTLED = frozenset(("gpu_idle", "application_clocks", "sync_boost", "display_clocks"))

# nvmlDeviceGpuRecoveryAction of nvml.h.
RECOVERY_ACTIONS = {
    0: "none",
    1: "gpu_reset",
    2: "node_reboot",
    3: "drain_p2p",
    4: "drain_and_reset",
    5: "recover_imex_domain",
    6: "bus_reset",
    7: "system_reboot",
}
FIELD_RECOVERY_ACTION = 230  # NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
MEMORY_V2 = 0x02000028  # version of nvmlMemory_v2_t: its size in bytes and its number
NOT_AVAILABLE = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE, in place of a process's bytes
RETRIES = 5  # of a process list that grew between "how many" and "which"

EMPTY_GPU = {
    "index": None,
    "state": "ok",
    "message": None,
    "uuid": None,
    "name": None,
    "pci_bus_id": None,
    "compute_capability": None,
    "total_mib": None,
    "reserved_mib": None,
    "used_mib": None,
    "free_mib": None,
    "gpu_util_percent": None,
    "memory_util_percent": None,
    "temperature_c": None,
    "power_w": None,
    "power_limit_w": None,
    "power_default_limit_w": None,
    "power_enforced_limit_w": None,
    "power_min_limit_w": None,
    "power_max_limit_w": None,
    "throttle_reasons": None,
    "throttled": None,
    "ecc_enabled": None,
    "mig_enabled": None,
    "persistence_enabled": None,
    "pcie_generation": None,
    "pcie_generation_max": None,
    "pcie_width": None,
    "pcie_width_max": None,
    "pcie_replays": None,
    "recovery_action": None,
    "processes": None,
}


class NvmlError(Exception):
    """An NVML call failed; ``value`` is its code in nvml.h."""

    def __init__(self, value, text=None):
        super().__init__(text or f"NVML error {value}")
        self.value = value


def sample(nvml=None, run=None, proc="/proc", library="libnvidia-ml.so.1"):
    """One sample of everything (the shape is in this file's docstring).

    ``nvml`` is a module with pynvml's functions; without one, pynvml is imported, and where that is not
    to be had nvidia-smi is run, and where that is not to be had the library is asked directly.
    ``run`` stands for subprocess.run, ``proc`` for /proc.
    """
    nvml = nvml or client()
    if nvml is not None:
        return read(nvml, "pynvml", proc)
    answer = read_smi(run, proc)
    return answer if answer is not None else read(BareLibrary(library), "libnvidia-ml", proc)


def client():
    """The module pynvml, or None where nvidia-ml-py is not installed."""
    try:
        import pynvml
    except ImportError:
        return None
    # Anything may call itself pynvml; ours has these two.
    return pynvml if hasattr(pynvml, "nvmlInit") and hasattr(pynvml, "NVMLError") else None


def client_versions():
    """``(version of nvidia-ml-py or None, version of the deprecated distribution pynvml or None)`` of this Python."""
    from importlib import metadata

    found = []
    for name in ("nvidia-ml-py", "pynvml"):
        try:
            found.append(metadata.version(name))
        except metadata.PackageNotFoundError:
            found.append(None)
    return tuple(found)


def processes(taken):
    """All processes of a sample in one list, each with ``gpu_index`` and ``gpu_uuid``; None when no GPU could tell."""
    lists = [gpu for gpu in taken["gpus"] if gpu["processes"] is not None]
    if not lists:
        return None
    return [dict(process, gpu_index=gpu["index"], gpu_uuid=gpu["uuid"]) for gpu in lists for process in gpu["processes"]]


def ticks_per_second():
    """Clock ticks a second of the times in /proc/PID/stat."""
    return os.sysconf("SC_CLK_TCK")


def read(nvml, source, proc="/proc"):
    """A sample by a module with pynvml's functions. Initialises NVML and shuts it down again."""
    answer = _answer(source)
    # Known without a driver: the library's own version (measured, Debian 535 and 550).
    code, _value = _ask(nvml, "nvmlInit")
    answer["nvml_version"] = _text(_ask(nvml, "nvmlSystemGetNVMLVersion")[1])
    if code != SUCCESS:
        return _failed(answer, code, _error_text(nvml, code))
    try:
        answer["driver_version"] = _text(_ask(nvml, "nvmlSystemGetDriverVersion")[1])
        branch = _ask(nvml, "nvmlSystemGetDriverBranch")[1]
        answer["driver_branch"] = _text(getattr(branch, "branch", None))
        cuda = _ask(nvml, "nvmlSystemGetCudaDriverVersion")[1]
        answer["cuda_version"] = None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}"
        code, count = _ask(nvml, "nvmlDeviceGetCount")
        if code != SUCCESS:
            return _failed(answer, code, _error_text(nvml, code))
        answer["gpus"] = [_gpu(nvml, index, proc) for index in range(count)]
    finally:
        _ask(nvml, "nvmlShutdown")
    return _answered(answer)


def _answer(source):
    return {
        "state": "ok",
        "message": None,
        "code": SUCCESS,
        "source": source,
        "driver_version": None,
        "driver_branch": None,
        "nvml_version": None,
        "cuda_version": None,
        "gpus": [],
    }


def _answered(answer):
    if not answer["gpus"]:
        answer.update(state="no_gpu", message=MESSAGES["no_gpu"])
    return answer


def _failed(answer, code, text):
    state = STATES.get(code, "error")
    message = MESSAGES.get(state) or (f"NVML failed with code {code} ({text}); look into the kernel log for lines of NVRM and Xid.")
    answer.update(state=state, message=message, code=code, gpus=[])
    return answer


def _ask(nvml, name, *args):
    """``(code, value)`` of one call; value is None unless the code is 0."""
    function = getattr(nvml, name, None)
    if function is None:
        return FUNCTION_NOT_FOUND, None
    try:
        return SUCCESS, function(*args)
    except nvml.NVMLError as error:
        return getattr(error, "value", UNKNOWN), None
    except UnicodeDecodeError:  # a text that is none, as a broken card gives
        return UNKNOWN, None


def _error_text(nvml, code):
    return _text(_ask(nvml, "nvmlErrorString", code)[1]) or "no text"


def _text(value):
    """str of a text that older clients give as bytes; None for an empty one."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return value or None


class _Device:
    """Calls for one device; remembers the worst that happened to it."""

    def __init__(self, nvml, index):
        self.nvml = nvml
        self.code, self.handle = _ask(nvml, "nvmlDeviceGetHandleByIndex", index)

    def ask(self, names, *args):
        """The value of the first of ``names`` that exists and works, or None."""
        for name in names.split():
            code, value = _ask(self.nvml, name, self.handle, *args)
            if code == GPU_IS_LOST:
                self.code = code
            if code == SUCCESS:
                return value
        return None


def _gpu(nvml, index, proc):
    gpu = dict(EMPTY_GPU, index=index)
    device = _Device(nvml, index)
    if device.code == SUCCESS:
        gpu.update(_identity(device))
        gpu.update(_memory(device))
        gpu.update(_sensors(device))
        gpu.update(_modes(device))
        gpu["processes"] = _processes(device, proc)
    if device.code == GPU_IS_LOST:
        gpu.update(
            state="lost",
            message=LOST.format(index),
        )
    elif device.code != SUCCESS:
        gpu.update(state="error", message=_device_error(nvml, index, device.code))
    elif gpu["total_mib"] is None:
        gpu.update(state="error", message=NO_MEMORY.format(index))
    return gpu


def _device_error(nvml, index, code):
    return f"GPU {index} could not be opened: NVML code {code} ({_error_text(nvml, code)})."


def _identity(device):
    pci = device.ask("nvmlDeviceGetPciInfo_v3 nvmlDeviceGetPciInfo")
    capability = device.ask("nvmlDeviceGetCudaComputeCapability")
    return {
        "uuid": _text(device.ask("nvmlDeviceGetUUID")),
        "name": _text(device.ask("nvmlDeviceGetName")),
        "pci_bus_id": _text(getattr(pci, "busId", None)),
        "compute_capability": None if capability is None else f"{capability[0]}.{capability[1]}",
    }


def _memory(device):
    memory = device.ask("nvmlDeviceGetMemoryInfo", MEMORY_V2)
    if memory is None:
        memory = device.ask("nvmlDeviceGetMemoryInfo")
    return {f"{name}_mib": _mib(getattr(memory, name, None)) for name in ("total", "reserved", "used", "free")}


def _sensors(device):
    load = device.ask("nvmlDeviceGetUtilizationRates")
    limits = device.ask("nvmlDeviceGetPowerManagementLimitConstraints") or (None, None)
    bits = device.ask("nvmlDeviceGetCurrentClocksEventReasons nvmlDeviceGetCurrentClocksThrottleReasons")
    reasons = throttle_reasons(bits)
    return {
        "gpu_util_percent": getattr(load, "gpu", None),
        "memory_util_percent": getattr(load, "memory", None),
        "temperature_c": device.ask("nvmlDeviceGetTemperatureV nvmlDeviceGetTemperature", 0),
        "power_w": _watt(device.ask("nvmlDeviceGetPowerUsage")),
        "power_limit_w": _watt(device.ask("nvmlDeviceGetPowerManagementLimit")),
        "power_default_limit_w": _watt(device.ask("nvmlDeviceGetPowerManagementDefaultLimit")),
        "power_enforced_limit_w": _watt(device.ask("nvmlDeviceGetEnforcedPowerLimit")),
        "power_min_limit_w": _watt(limits[0]),
        "power_max_limit_w": _watt(limits[1]),
        "throttle_reasons": reasons,
        "throttled": throttled(reasons),
    }


def _modes(device):
    return {
        "ecc_enabled": _current(device.ask("nvmlDeviceGetEccMode")),
        "mig_enabled": _current(device.ask("nvmlDeviceGetMigMode")),
        "persistence_enabled": _flag(device.ask("nvmlDeviceGetPersistenceMode")),
        "pcie_generation": device.ask("nvmlDeviceGetCurrPcieLinkGeneration"),
        "pcie_generation_max": device.ask("nvmlDeviceGetMaxPcieLinkGeneration"),
        "pcie_width": device.ask("nvmlDeviceGetCurrPcieLinkWidth"),
        "pcie_width_max": device.ask("nvmlDeviceGetMaxPcieLinkWidth"),
        "pcie_replays": device.ask("nvmlDeviceGetPcieReplayCounter"),
        "recovery_action": _recovery_action(device),
    }


def _recovery_action(device):
    fields = device.ask("nvmlDeviceGetFieldValues", [FIELD_RECOVERY_ACTION])
    if not fields or fields[0].nvmlReturn != SUCCESS:
        return None
    number = fields[0].value.uiVal
    return RECOVERY_ACTIONS.get(number, f"unknown_{number}")


def throttle_reasons(bits):
    """Names of the bits of nvmlClocksEventReasons; None for None."""
    return None if bits is None else [name for bit, name in THROTTLE_REASONS if bits & bit]


def throttled(reasons):
    """Whether something slows the clocks that neither idleness nor a setting explains; None for None."""
    return None if reasons is None else any(name not in NOT_THROTTLED for name in reasons)


def _processes(device, proc):
    """Compute and graphics processes, one entry a pid; None when the compute list could not be read."""
    compute = _process_list(device, "nvmlDeviceGetComputeRunningProcesses")
    if compute is None:
        return None
    graphics = _process_list(device, "nvmlDeviceGetGraphicsRunningProcesses") or []
    merged = {entry.pid: ("compute", entry.usedGpuMemory) for entry in compute}
    for entry in graphics:
        if entry.pid in merged:
            merged[entry.pid] = ("both", merged[entry.pid][1])
        else:
            merged[entry.pid] = ("graphics", entry.usedGpuMemory)
    return [_process(pid, kind, _mib(used), proc) for pid, (kind, used) in sorted(merged.items())]


def _process_list(device, name):
    for _attempt in range(RETRIES):
        code, entries = _ask(device.nvml, name, device.handle)
        if code == GPU_IS_LOST:
            device.code = code
        if code != INSUFFICIENT_SIZE:  # processes appeared between the client's two questions
            return entries
    return None


def _process(pid, kind, used_mib, proc):
    # A process on a card holds at least its context: 0 is what drivers say of pids they cannot look into.
    return dict(describe_process(pid, proc), pid=pid, type=kind, used_mib=used_mib or None)


def describe_process(pid, proc="/proc"):
    """``unit, ppid, uid, comm, exe, age_s`` of a pid, each None where /proc does not tell."""
    folder = os.path.join(proc, str(pid))
    found = dict.fromkeys(("unit", "ppid", "uid", "comm", "exe", "age_s"))
    status = _read_file(os.path.join(folder, "status")) or ""
    for line in status.splitlines():
        key, _colon, value = line.partition(":")
        if key == "Name":
            found["comm"] = value.strip()
        elif key == "PPid":
            found["ppid"] = int(value)
        elif key == "Uid":
            found["uid"] = int(value.split()[0])
    if not status:
        return found
    with contextlib.suppress(OSError):
        found["exe"] = os.readlink(os.path.join(folder, "exe"))
    found["age_s"] = _age_s(_read_file(os.path.join(folder, "stat")), _read_file(os.path.join(proc, "uptime")))
    found["unit"] = unit_of(_read_file(os.path.join(folder, "cgroup")) or "", _read_file(os.path.join(proc, "1", "cgroup")) or "")
    return found


def _age_s(stat, uptime):
    if not stat or not uptime:
        return None
    # The name in brackets may hold anything; field 22 is the start in ticks after boot (man proc).
    fields = stat.rpartition(")")[2].split()
    return round(max(0.0, float(uptime.split()[0]) - int(fields[19]) / ticks_per_second()), 2)


def unit_of(cgroup_text, init_text=""):
    """The systemd unit (service or scope) in the text of /proc/PID/cgroup, or None.

    Knows cgroup v2 (``0::/…``) and v1 (``…:name=systemd:/…``; it wins on hybrid hosts). ``init_text`` is the
    same file of pid 1: inside a container its path goes before ours.
    """
    path, init = _cgroup_path(cgroup_text), _cgroup_path(init_text)
    root = re.sub(r"/(init\.scope|init)$", "", init or "")
    if path is None:
        return None
    if root and path.startswith(root + "/"):
        path = path[len(root) :]
    for part in path.split("/"):
        if part.endswith((".service", ".scope")):
            return part
    return None


def _cgroup_path(text):
    paths = {}
    for line in text.splitlines():
        _number, _colon, rest = line.partition(":")
        controllers, _colon, path = rest.partition(":")
        paths[controllers] = path
    return paths.get("name=systemd", paths.get(""))


def _read_file(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read()
    except OSError:
        return None


def _mib(count):
    return None if count is None else round(count / MIB)


def _watt(milliwatt):
    return None if milliwatt is None else round(milliwatt / 1000, 1)


def _flag(number):
    return None if number is None else bool(number)


def _current(pair):
    """NVML gives modes as (current, pending)."""
    return None if pair is None else bool(pair[0])


# ---- nvidia-smi ---------------------------------------------------------------------------------------------------


def _enabled(text):
    if text not in ("Enabled", "Disabled"):
        raise ValueError(text)
    return text == "Enabled"


# Key of the GPU, field as `nvidia-smi --help-query-gpu` names it, and how its text is read.
SMI_FIELDS = (
    ("index", "index", int),
    ("uuid", "uuid", str),
    ("name", "name", str),
    ("pci_bus_id", "pci.bus_id", str),
    ("driver_version", "driver_version", str),
    ("compute_capability", "compute_cap", str),
    ("total_mib", "memory.total", int),
    ("reserved_mib", "memory.reserved", int),
    ("used_mib", "memory.used", int),
    ("free_mib", "memory.free", int),
    ("gpu_util_percent", "utilization.gpu", int),
    ("memory_util_percent", "utilization.memory", int),
    ("temperature_c", "temperature.gpu", int),
    ("power_w", "power.draw", float),
    ("power_limit_w", "power.limit", float),
    ("power_default_limit_w", "power.default_limit", float),
    ("power_enforced_limit_w", "enforced.power.limit", float),
    ("power_min_limit_w", "power.min_limit", float),
    ("power_max_limit_w", "power.max_limit", float),
    ("throttle_reasons", "clocks_throttle_reasons.active", lambda text: throttle_reasons(int(text, 16))),
    ("ecc_enabled", "ecc.mode.current", _enabled),
    ("mig_enabled", "mig.mode.current", _enabled),
    ("persistence_enabled", "persistence_mode", _enabled),
    ("pcie_generation", "pcie.link.gen.current", int),
    ("pcie_generation_max", "pcie.link.gen.max", int),
    ("pcie_width", "pcie.link.width.current", int),
    ("pcie_width_max", "pcie.link.width.max", int),
)
SMI_TIMEOUT_S = 60  # without persistence every call starts the card, seconds each


def read_smi(run=None, proc="/proc"):
    """A sample by nvidia-smi's csv answers; None where there is no such program or it does not end in time."""
    fields = list(SMI_FIELDS)
    while True:
        done = _smi(run, "--query-gpu=" + ",".join(field[1] for field in fields))
        if done is None:
            return None
        refused = re.search(r'Field "([^"]+)" is not a valid field', done.stdout)
        kept = [field for field in fields if not refused or field[1] != refused.group(1)]
        if len(kept) == len(fields):
            break
        fields = kept
    answer = _answer("nvidia-smi")
    answer["gpus"] = [gpu for gpu in (_smi_gpu(fields, row) for row in _rows(done.stdout)) if gpu]
    for gpu in answer["gpus"]:
        answer["driver_version"] = gpu.pop("driver_version", None) or answer["driver_version"]
    if done.returncode == GPU_IS_LOST:
        answer["gpus"].append(_smi_lost(len(answer["gpus"]), done.stdout, len(fields)))
    elif done.returncode != SUCCESS:  # nvidia-smi exits with the code of NVML
        return _failed(answer, done.returncode, " ".join(done.stdout.split())[:200] or "no text")
    _smi_processes(answer["gpus"], run, proc)
    return _answered(answer)


def _smi(run, query):
    import subprocess  # 5 ms that a tick of the guard, which asks the library itself, does not need

    try:
        return (run or subprocess.run)(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
            timeout=SMI_TIMEOUT_S,
            env=dict(os.environ, LC_ALL="C"),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _rows(text):
    """Cells of each line; nvidia-smi quotes nothing, and no value has a comma."""
    return [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]


def _smi_gpu(fields, row):
    """A GPU of one row; None for a line that is none (a message between the rows)."""
    if len(row) != len(fields) or not row[0].isdigit():
        return None
    gpu = dict(EMPTY_GPU)
    for (key, _name, convert), text in zip(fields, row):
        gpu[key] = _converted(convert, text)
    gpu["throttled"] = throttled(gpu["throttle_reasons"])
    if "lost" in " ".join(row).lower():
        gpu.update(state="lost", message=LOST.format(gpu["index"]))
    elif gpu["total_mib"] is None:
        gpu.update(state="error", message=NO_MEMORY.format(gpu["index"]))
    return gpu


def _converted(convert, text):
    """The cell's value; None for [N/A], [Not Supported], [Unknown Error] and whatever else is no such value."""
    if not text or text.startswith("[") or text == "N/A":
        return None
    try:
        return convert(text)
    except ValueError:
        return None


def _smi_lost(index, text, columns):
    """The GPU of the message that nvidia-smi gives in place of its row."""
    told = " ".join(line.strip() for line in text.splitlines() if line.count(",") != columns - 1)
    bus = re.search(r"([0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f])", told)
    return dict(
        EMPTY_GPU,
        index=index,
        state="lost",
        pci_bus_id=bus.group(1) if bus else None,
        message=f"nvidia-smi reports a lost GPU ({told[-160:]}); this host has to be rebooted.",
    )


def _smi_processes(gpus, run, proc):
    done = _smi(run, "--query-compute-apps=gpu_uuid,pid,used_memory")
    if done is None or done.returncode != SUCCESS:
        return
    by_uuid = {gpu["uuid"]: gpu for gpu in gpus if gpu["uuid"] and gpu["state"] == "ok"}
    for gpu in by_uuid.values():
        gpu["processes"] = []
    for row in _rows(done.stdout):
        if len(row) == 3 and row[0] in by_uuid and row[1].isdigit():
            entry = _process(int(row[1]), "compute", _converted(int, row[2]), proc)
            by_uuid[row[0]]["processes"].append(entry)


# ---- the library without a client -----------------------------------------------------------------------------------


class BareLibrary:
    """The few functions of pynvml that tell which cards there are, how much memory is free and who holds it, by ctypes.

    For hosts where neither nvidia-ml-py nor nvidia-smi is installed yet, and for the guard, whose tick would spend
    half of its time on the 171 structures that pynvml makes when it is imported. Structures and names as in nvml.h.
    """

    NVMLError = NvmlError

    class _Utilization(ctypes.Structure):
        _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]

    class _Process(ctypes.Structure):
        _fields_ = [
            ("pid", ctypes.c_uint),
            ("usedGpuMemory", ctypes.c_ulonglong),
            ("gpuInstanceId", ctypes.c_uint),
            ("computeInstanceId", ctypes.c_uint),
        ]

    class _Field(ctypes.Structure):
        class _Value(ctypes.Union):
            _fields_ = [("uiVal", ctypes.c_uint), ("ullVal", ctypes.c_ulonglong)]

        _fields_ = [
            ("fieldId", ctypes.c_uint),
            ("scopeId", ctypes.c_uint),
            ("timestamp", ctypes.c_longlong),
            ("latencyUsec", ctypes.c_longlong),
            ("valueType", ctypes.c_uint),
            ("nvmlReturn", ctypes.c_uint),
            ("value", _Value),
        ]

    class _Memory(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint)] + [(name, ctypes.c_ulonglong) for name in ("total", "reserved", "free", "used")]

    class _Pci(ctypes.Structure):
        _fields_ = (
            [("busIdLegacy", ctypes.c_char * 16)]
            + [(name, ctypes.c_uint) for name in ("domain", "bus", "device", "pciDeviceId", "pciSubSystemId")]
            + [("busId", ctypes.c_char * 32)]
        )

    def __init__(self, name):
        self._name = name
        self._library = None

    def _call(self, name, *args):
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise NvmlError(LIBRARY_NOT_FOUND if self._library is None else FUNCTION_NOT_FOUND) from None
        code = function(*args)
        if code != SUCCESS:
            raise NvmlError(code)

    def _string(self, name, *args):
        buffer = ctypes.create_string_buffer(96)
        self._call(name, *args, buffer, ctypes.c_uint(len(buffer)))
        return buffer.value

    def nvmlInit(self):
        try:
            self._library = ctypes.CDLL(self._name)
        except OSError:
            raise NvmlError(LIBRARY_NOT_FOUND) from None
        self._call("nvmlInit_v2")

    def nvmlShutdown(self):
        self._call("nvmlShutdown")

    def nvmlErrorString(self, code):
        if self._library is None:
            raise NvmlError(LIBRARY_NOT_FOUND)
        self._library.nvmlErrorString.restype = ctypes.c_char_p
        return self._library.nvmlErrorString(ctypes.c_uint(code))

    def nvmlSystemGetNVMLVersion(self):
        return self._string("nvmlSystemGetNVMLVersion")

    def nvmlSystemGetDriverVersion(self):
        return self._string("nvmlSystemGetDriverVersion")

    def nvmlSystemGetCudaDriverVersion(self):
        number = ctypes.c_int()
        self._call("nvmlSystemGetCudaDriverVersion", ctypes.byref(number))
        return number.value

    def nvmlDeviceGetCount(self):
        number = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(number))
        return number.value

    def nvmlDeviceGetHandleByIndex(self, index):
        handle = ctypes.c_void_p()
        self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
        return handle

    def nvmlDeviceGetName(self, handle):
        return self._string("nvmlDeviceGetName", handle)

    def nvmlDeviceGetUUID(self, handle):
        return self._string("nvmlDeviceGetUUID", handle)

    def nvmlDeviceGetPciInfo(self, handle):
        info = self._Pci()
        self._call("nvmlDeviceGetPciInfo_v3", handle, ctypes.byref(info))
        return info

    def nvmlDeviceGetCudaComputeCapability(self, handle):
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvmlDeviceGetCudaComputeCapability", handle, ctypes.byref(major), ctypes.byref(minor))
        return major.value, minor.value

    def nvmlDeviceGetMemoryInfo(self, handle, version=MEMORY_V2):
        memory = self._Memory(version=version)
        self._call("nvmlDeviceGetMemoryInfo_v2", handle, ctypes.byref(memory))
        return memory

    def nvmlDeviceGetUtilizationRates(self, handle):
        load = self._Utilization()
        self._call("nvmlDeviceGetUtilizationRates", handle, ctypes.byref(load))
        return load

    def nvmlDeviceGetFieldValues(self, handle, numbers):
        fields = (self._Field * len(numbers))()
        for field, number in zip(fields, numbers):
            field.fieldId = number
        self._call("nvmlDeviceGetFieldValues", handle, ctypes.c_int(len(fields)), fields)
        return fields

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        return self._processes("nvmlDeviceGetComputeRunningProcesses", handle)

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle):
        return self._processes("nvmlDeviceGetGraphicsRunningProcesses", handle)

    def _processes(self, name, handle):
        """Entries with ``pid`` and ``usedGpuMemory`` (bytes; None where the driver does not tell).

        Asks with room for as many as there were and a few more; still too little is for the caller to try again.
        """
        room = ctypes.c_uint(0)
        try:
            self._call_first(name, handle, ctypes.byref(room), None)
        except NvmlError as error:
            if error.value != INSUFFICIENT_SIZE:
                raise
        room = ctypes.c_uint(room.value + 5)
        entries = (self._Process * room.value)()
        self._call_first(name, handle, ctypes.byref(room), entries)
        found = entries[: room.value]
        return [_Entry(entry.pid, None if entry.usedGpuMemory == NOT_AVAILABLE else entry.usedGpuMemory) for entry in found]

    def _call_first(self, name, *args):
        """The function of release 510 and later, else the one before; both fill the same structure."""
        try:
            self._call(name + "_v3", *args)
        except NvmlError as error:
            if error.value != FUNCTION_NOT_FOUND:
                raise
            self._call(name + "_v2", *args)


class _Entry:
    def __init__(self, pid, used):
        self.pid, self.usedGpuMemory = pid, used
