# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""A sample of the GPUs by a module that has the functions of pynvml: nvidia-ml-py, or `library.Library`."""

from __future__ import annotations

from . import shape
from .shape import GPU_IS_LOST, SUCCESS

# As typing has it, without importing it: the guard's tick pays for every import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FIELD_RECOVERY_ACTION = 230  # NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
MEMORY_V2 = 0x02000028  # version of nvmlMemory_v2_t: its size in bytes and its number
RETRIES = 5  # of a process list that grew between "how many" and "which"


def load() -> Any:
    """The module pynvml, or None where nvidia-ml-py is not installed."""
    try:
        import pynvml
    except ImportError:
        return None
    # Anything may call itself pynvml; ours has these two.
    return pynvml if hasattr(pynvml, "nvmlInit") and hasattr(pynvml, "NVMLError") else None


def versions() -> tuple[str | None, str | None]:
    """``(version of nvidia-ml-py or None, version of the deprecated distribution pynvml or None)`` of this Python."""
    return _version("nvidia-ml-py"), _version("pynvml")


def _version(distribution: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def read(nvml: Any, source: str, proc: str = "/proc") -> dict:
    """A sample by a module with pynvml's functions. Initialises NVML and shuts it down again."""
    answer = shape.answer(source)
    # Known without a driver: the library's own version (measured, Debian 535 and 550).
    code, _value = _ask(nvml, "nvmlInit")
    answer["nvml_version"] = _text(_ask(nvml, "nvmlSystemGetNVMLVersion")[1])
    if code != SUCCESS:
        return shape.failed(answer, code, _error_text(nvml, code))
    try:
        answer["driver_version"] = _text(_ask(nvml, "nvmlSystemGetDriverVersion")[1])
        branch = _ask(nvml, "nvmlSystemGetDriverBranch")[1]
        answer["driver_branch"] = _text(getattr(branch, "branch", None))
        cuda = _ask(nvml, "nvmlSystemGetCudaDriverVersion")[1]
        answer["cuda_version"] = None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}"
        code, count = _ask(nvml, "nvmlDeviceGetCount")
        if code != SUCCESS:
            return shape.failed(answer, code, _error_text(nvml, code))
        answer["gpus"] = [_gpu(nvml, index, proc) for index in range(count)]
    finally:
        _ask(nvml, "nvmlShutdown")
    return shape.answered(answer)


def _ask(nvml: Any, name: str, *args: object) -> tuple[int, Any]:
    """``(code, value)`` of one call; value is None unless the code is 0."""
    function = getattr(nvml, name, None)
    if function is None:
        return shape.FUNCTION_NOT_FOUND, None
    try:
        return SUCCESS, function(*args)
    except nvml.NVMLError as error:
        return getattr(error, "value", shape.UNKNOWN), None
    except UnicodeDecodeError:  # not a text, as a broken card gives
        return shape.UNKNOWN, None


def _error_text(nvml: Any, code: int) -> str:
    return _text(_ask(nvml, "nvmlErrorString", code)[1]) or "no text"


def _text(value: str | bytes | None) -> str | None:
    """str of a text that older clients give as bytes; None for an empty one."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return value or None


class _Device:
    """Calls for one device; remembers the worst that happened to it."""

    def __init__(self, nvml: Any, index: int) -> None:
        self.nvml = nvml
        self.code, self.handle = _ask(nvml, "nvmlDeviceGetHandleByIndex", index)

    def ask(self, names: str, *args: object) -> Any:
        """The value of the first of ``names`` that exists and works, or None."""
        for name in names.split():
            code, value = _ask(self.nvml, name, self.handle, *args)
            if code == GPU_IS_LOST:
                self.code = code
            if code == SUCCESS:
                return value
        return None


def _gpu(nvml: Any, index: int, proc: str) -> dict[str, Any]:
    gpu = dict(shape.EMPTY_GPU, index=index)
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
            message=shape.LOST.format(index),
        )
    elif device.code != SUCCESS:
        gpu.update(state="error", message=_device_error(nvml, index, device.code))
    elif gpu["total_mib"] is None:
        gpu.update(state="error", message=shape.NO_MEMORY.format(index))
    return gpu


def _device_error(nvml: Any, index: int, code: int) -> str:
    return f"GPU {index} could not be opened: NVML code {code} ({_error_text(nvml, code)})."


def _identity(device: _Device) -> dict[str, Any]:
    pci = device.ask("nvmlDeviceGetPciInfo_v3 nvmlDeviceGetPciInfo")
    capability = device.ask("nvmlDeviceGetCudaComputeCapability")
    return {
        "uuid": _text(device.ask("nvmlDeviceGetUUID")),
        "name": _text(device.ask("nvmlDeviceGetName")),
        "pci_bus_id": _text(getattr(pci, "busId", None)),
        "compute_capability": None if capability is None else f"{capability[0]}.{capability[1]}",
    }


def _memory(device: _Device) -> dict[str, Any]:
    memory = device.ask("nvmlDeviceGetMemoryInfo", MEMORY_V2)
    if memory is None:
        memory = device.ask("nvmlDeviceGetMemoryInfo")
    return {f"{name}_mib": shape.mib(getattr(memory, name, None)) for name in ("total", "reserved", "used", "free")}


def _sensors(device: _Device) -> dict[str, Any]:
    load = device.ask("nvmlDeviceGetUtilizationRates")
    limits = device.ask("nvmlDeviceGetPowerManagementLimitConstraints") or (None, None)
    bits = device.ask("nvmlDeviceGetCurrentClocksEventReasons nvmlDeviceGetCurrentClocksThrottleReasons")
    reasons = shape.throttle_reasons(bits)
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
        "throttled": shape.throttled(reasons),
    }


def _modes(device: _Device) -> dict[str, Any]:
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


def _recovery_action(device: _Device) -> str | None:
    fields = device.ask("nvmlDeviceGetFieldValues", [FIELD_RECOVERY_ACTION])
    if not fields or fields[0].nvmlReturn != SUCCESS:
        return None
    number = fields[0].value.uiVal
    return shape.RECOVERY_ACTIONS.get(number, f"unknown_{number}")


def _processes(device: _Device, proc: str) -> list[dict[str, Any]] | None:
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
    return [shape.process(pid, kind, shape.mib(used), proc) for pid, (kind, used) in sorted(merged.items())]


def _process_list(device: _Device, name: str) -> Any:
    for _attempt in range(RETRIES):
        code, entries = _ask(device.nvml, name, device.handle)
        if code == GPU_IS_LOST:
            device.code = code
        if code != shape.INSUFFICIENT_SIZE:  # processes appeared between the client's two questions
            return entries
    return None


def _watt(milliwatt: int | None) -> float | None:
    return None if milliwatt is None else round(milliwatt / 1000, 1)


def _flag(number: int | None) -> bool | None:
    return None if number is None else bool(number)


def _current(pair: tuple[int, int] | None) -> bool | None:
    """NVML gives modes as (current, pending)."""
    return None if pair is None else bool(pair[0])
