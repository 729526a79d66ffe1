# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
# ruff: noqa: N802  (Library has the names of nvml.h)
"""The library libnvidia-ml.so.1 without a client: the few functions of pynvml for cards, memory and processes."""

from __future__ import annotations

import ctypes

from .client import MEMORY_V2
from .shape import FUNCTION_NOT_FOUND, INSUFFICIENT_SIZE, LIBRARY_NOT_FOUND, SUCCESS

# As typing has it, without importing it: the guard's tick pays for every import.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NAME = "libnvidia-ml.so.1"
NOT_AVAILABLE = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE, in place of a process's bytes


class NvmlError(Exception):
    """An NVML call failed; ``value`` is its code in nvml.h."""

    def __init__(self, value: int, text: str | None = None) -> None:
        super().__init__(text or f"NVML error {value}")
        self.value = value


class Library:
    """By ctypes, the few functions of pynvml that say which cards there are, what memory is free and who holds it.

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
        _fields_ = [("version", ctypes.c_uint)] + [
            (name, ctypes.c_ulonglong) for name in ("total", "reserved", "free", "used")
        ]

    class _Pci(ctypes.Structure):
        _fields_ = (
            [("busIdLegacy", ctypes.c_char * 16)]
            + [(name, ctypes.c_uint) for name in ("domain", "bus", "device", "pciDeviceId", "pciSubSystemId")]
            + [("busId", ctypes.c_char * 32)]
        )

    def __init__(self, name: str) -> None:
        self._name = name
        self._library: Any = None

    def _call(self, name: str, *args: object) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise NvmlError(LIBRARY_NOT_FOUND if self._library is None else FUNCTION_NOT_FOUND) from None
        code = function(*args)
        if code != SUCCESS:
            raise NvmlError(code)

    def _string(self, name: str, *args: object) -> bytes:
        buffer = ctypes.create_string_buffer(96)
        self._call(name, *args, buffer, ctypes.c_uint(len(buffer)))
        return buffer.value

    def nvmlInit(self) -> None:
        try:
            self._library = ctypes.CDLL(self._name)
        except OSError:
            raise NvmlError(LIBRARY_NOT_FOUND) from None
        self._call("nvmlInit_v2")

    def nvmlShutdown(self) -> None:
        self._call("nvmlShutdown")

    def nvmlErrorString(self, code: int) -> bytes:
        if self._library is None:
            raise NvmlError(LIBRARY_NOT_FOUND)
        self._library.nvmlErrorString.restype = ctypes.c_char_p
        return self._library.nvmlErrorString(ctypes.c_uint(code))

    def nvmlSystemGetNVMLVersion(self) -> bytes:
        return self._string("nvmlSystemGetNVMLVersion")

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return self._string("nvmlSystemGetDriverVersion")

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        number = ctypes.c_int()
        self._call("nvmlSystemGetCudaDriverVersion", ctypes.byref(number))
        return number.value

    def nvmlDeviceGetCount(self) -> int:
        number = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(number))
        return number.value

    def nvmlDeviceGetHandleByIndex(self, index: int) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
        return handle

    def nvmlDeviceGetName(self, handle: ctypes.c_void_p) -> bytes:
        return self._string("nvmlDeviceGetName", handle)

    def nvmlDeviceGetUUID(self, handle: ctypes.c_void_p) -> bytes:
        return self._string("nvmlDeviceGetUUID", handle)

    def nvmlDeviceGetPciInfo(self, handle: ctypes.c_void_p) -> _Pci:
        info = self._Pci()
        self._call("nvmlDeviceGetPciInfo_v3", handle, ctypes.byref(info))
        return info

    def nvmlDeviceGetCudaComputeCapability(self, handle: ctypes.c_void_p) -> tuple[int, int]:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvmlDeviceGetCudaComputeCapability", handle, ctypes.byref(major), ctypes.byref(minor))
        return major.value, minor.value

    def nvmlDeviceGetMemoryInfo(self, handle: ctypes.c_void_p, version: int = MEMORY_V2) -> _Memory:
        memory = self._Memory(version=version)
        self._call("nvmlDeviceGetMemoryInfo_v2", handle, ctypes.byref(memory))
        return memory

    def nvmlDeviceGetUtilizationRates(self, handle: ctypes.c_void_p) -> _Utilization:
        load = self._Utilization()
        self._call("nvmlDeviceGetUtilizationRates", handle, ctypes.byref(load))
        return load

    def nvmlDeviceGetFieldValues(self, handle: ctypes.c_void_p, numbers: list[int]) -> Any:
        fields = (self._Field * len(numbers))()
        for field, number in zip(fields, numbers):
            field.fieldId = number
        self._call("nvmlDeviceGetFieldValues", handle, ctypes.c_int(len(fields)), fields)
        return fields

    def nvmlDeviceGetComputeRunningProcesses(self, handle: ctypes.c_void_p) -> list[_Entry]:
        return self._processes("nvmlDeviceGetComputeRunningProcesses", handle)

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: ctypes.c_void_p) -> list[_Entry]:
        return self._processes("nvmlDeviceGetGraphicsRunningProcesses", handle)

    def _processes(self, name: str, handle: ctypes.c_void_p) -> list[_Entry]:
        """Entries with ``pid`` and ``usedGpuMemory`` (bytes; None where the driver does not say).

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
        return [
            _Entry(entry.pid, None if entry.usedGpuMemory == NOT_AVAILABLE else entry.usedGpuMemory) for entry in found
        ]

    def _call_first(self, name: str, *args: object) -> None:
        """The function of release 510 and later, else the one before; both fill the same structure."""
        try:
            self._call(name + "_v3", *args)
        except NvmlError as error:
            if error.value != FUNCTION_NOT_FOUND:
                raise
            self._call(name + "_v2", *args)


class _Entry:
    def __init__(self, pid: int, used: int | None) -> None:
        self.pid, self.usedGpuMemory = pid, used
