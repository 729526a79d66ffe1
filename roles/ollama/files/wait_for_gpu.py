# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wait until this host's GPUs can be used; run before the server by its unit.

A server that starts before the driver's devices are there, or against a driver that was
upgraded and not reloaded, serves from the CPU until its next restart and says nothing of it
(issue 27923 of llama.cpp). So it does against a driver that is older than its CUDA libraries take.
Exit 0 once the devices exist and NVML counts a GPU; else 1, with the reason on standard error,
after the seconds given first. The second argument is the oldest driver branch that serves, 0 for any.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time

DEVICES = ("/dev/nvidiactl", "/dev/nvidia-uvm")
# nvmlReturn_t of nvml.h; what an operator can do about each.
REASONS = {
    4: "no permission to talk to the driver: see DeviceAllow of this unit and the modes of /dev/nvidia*",
    9: "the driver is not loaded: see `modprobe nvidia` and the kernel's log",
    15: "a GPU has fallen off the bus: see the kernel's log for Xid 79",
    18: "the driver on disk is not the one that is loaded: reboot, or reload its modules",
}


def problem(oldest=0):
    """None once a GPU can be used with a driver of branch `oldest` or newer, else what stands in the way."""
    missing = [path for path in DEVICES if not os.path.exists(path)]
    if missing:
        return f"{', '.join(missing)} missing: is the driver loaded, and nvidia_uvm with it?"
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as error:
        return f"NVML cannot be loaded ({error}): is the driver's library installed?"
    code = nvml.nvmlInit_v2()
    if code:
        return f"NVML answers {code}: {REASONS.get(code, 'see `nvidia-smi`')}"
    version = ctypes.create_string_buffer(80)  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE of nvml.h
    nvml.nvmlSystemGetDriverVersion(version, len(version))
    count = ctypes.c_uint(0)
    code = nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    nvml.nvmlShutdown()
    branch = version.value.decode("ascii", "replace").partition(".")[0]
    if branch.isdigit() and int(branch) < oldest:
        return (
            f"the driver is {version.value.decode('ascii', 'replace')}, and this release of Ollama takes {oldest} or newer: "
            "upgrade the driver, or set ollama_version below 0.30"
        )
    if code or not count.value:
        return f"NVML counts no GPU (answer {code})"
    return None


def main(seconds, oldest=0):
    end = time.monotonic() + seconds
    while True:
        found = problem(oldest)
        if found is None:
            return 0
        if time.monotonic() >= end:
            print(f"No GPU to serve from after {seconds:.0f} s: {found}", file=sys.stderr)
            return 1
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2])))
