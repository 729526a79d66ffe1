# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The shape of what the GPUs of a host say of themselves: one dict, whoever answered.

Whatever could not be read is None and never 0. Units are in the names: MiB (2^20 bytes), W, °C, percent, s.

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
      "used_mib": int | None,          # None: the driver does not say
      "unit": "ollama.service" | None, # systemd unit of its cgroup
      "ppid": int | None, "uid": int | None, "comm": str | None, "exe": str | None,
      "age_s": float | None,           # since its start; with pid it shows a reused pid
    }
"""

from __future__ import annotations

from .._host.processes import describe
from .memory import MIB

# Return codes of nvml.h that decide a state.
SUCCESS = 0
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
        "libnvidia-ml.so.1 was not found, so the NVIDIA driver's libraries are not installed; install the driver, "
        "or set ollama_gpu_required to false."
    ),
    "no_driver": (
        "The NVIDIA library is installed, but the kernel module nvidia is not loaded; "
        "load it (modprobe nvidia) or check for Secure Boot, nouveau or a failed DKMS build."
    ),
    "mismatch": (
        "The NVIDIA library and the loaded kernel module are of different versions, as after an upgrade without "
        "a reboot: no new process can use the GPU; reboot, or unload and load the nvidia modules."
    ),
    "no_permission": (
        "The NVIDIA library was refused access to the device files; run as root or as a member of the group that "
        "NVreg_DeviceFileGID names."
    ),
    "no_gpu": "The NVIDIA driver is loaded and answers, but it drives no GPU; search for the card in lspci and dmesg.",
}

LOST = "GPU {} has fallen off the bus; this host has to be rebooted, often by a power cycle."
NO_MEMORY = "GPU {} does not report its memory; check the kernel log for lines of NVRM and Xid."

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

EMPTY_GPU: dict = {
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


def answer(source: str) -> dict:
    """A sample in which nothing has been read yet."""
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


def answered(answer: dict) -> dict:
    """The sample whose GPUs have been read; its state says so where there are none."""
    if not answer["gpus"]:
        answer.update(state="no_gpu", message=MESSAGES["no_gpu"])
    return answer


def failed(answer: dict, code: int, text: str) -> dict:
    """The sample in the state of an NVML code; *text* are the library's own words for it."""
    state = STATES.get(code, "error")
    message = MESSAGES.get(state) or (
        f"NVML failed with code {code} ({text}); check the kernel log for lines of NVRM and Xid."
    )
    answer.update(state=state, message=message, code=code, gpus=[])
    return answer


def throttle_reasons(bits: int | None) -> list[str] | None:
    """Names of the bits of nvmlClocksEventReasons; None for None."""
    return None if bits is None else [name for bit, name in THROTTLE_REASONS if bits & bit]


def throttled(reasons: list[str] | None) -> bool | None:
    """Whether something slows the clocks that neither idleness nor a setting explains; None for None."""
    return None if reasons is None else any(name not in NOT_THROTTLED for name in reasons)


def process(pid: int, kind: str, used_mib: int | None, proc: str = "/proc") -> dict:
    """A process of a GPU, with what /proc says of it."""
    # A process on a card holds at least its context: 0 is what drivers say of pids that they cannot see.
    return dict(describe(pid, proc), pid=pid, type=kind, used_mib=used_mib or None)


def mib(count: int | None) -> int | None:
    """Bytes in MiB, rounded; None for None."""
    return None if count is None else round(count / MIB)
