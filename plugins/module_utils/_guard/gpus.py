# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The cards and the processes on them: NVML gives PID and MiB, /proc says who that is."""

from __future__ import annotations

from .._host.files import text_or_none
from .._host.processes import ticks_per_second


def ask_nvml():
    """A sample of ``_gpu``, by the library itself.

    Not by pynvml, which costs as much as the rest of a tick: it makes 171 structures when it is imported. So the
    guard needs no package beside its Python, and none that an upgrade could break.
    """
    from .._gpu import client, library

    return client.read(library.Library("libnvidia-ml.so.1"), "libnvidia-ml")


def read_gpus(sample):
    """({state, detail} of NVML, [gpu]): the "nvml" and "gpus" parts of a sample from that of ``_gpu``."""
    gpus, trouble = [], []
    for gpu in sample["gpus"]:
        sizes = (gpu["total_mib"], gpu["used_mib"], gpu["free_mib"])
        whole = None not in sizes and gpu["processes"] is not None
        recovery = gpu["recovery_action"]
        gpus.append(
            {
                "uuid": name_of(gpu),
                "pci": gpu["pci_bus_id"],
                "state": "lost" if gpu["state"] == "lost" else "ok" if gpu["state"] == "ok" and whole else "unreadable",
                "total_mib": gpu["total_mib"],
                "used_mib": gpu["used_mib"],
                "free_mib": gpu["free_mib"],
                "utilisation": gpu["gpu_util_percent"],
                "recovery": None if recovery in (None, "none") else recovery,
            }
        )
        if gpu["message"]:
            trouble.append(gpu["message"])
    return {"state": sample["state"], "detail": sample["message"] or " ".join(trouble)}, gpus


def name_of(gpu):
    """A card's UUID; where that cannot be read, its index."""
    return gpu["uuid"] or f"index-{gpu['index']}"


def read_processes(sample, user):
    """The "processes" part of a sample: one entry per card and process."""
    owner = account(user)
    found = []
    for gpu in sample["gpus"]:
        for process in gpu["processes"] or []:
            stat = process_stat(process["pid"])
            argv = arguments(process["pid"])
            found.append(
                {
                    "pid": process["pid"],
                    "start": stat["start"],
                    "gpu": name_of(gpu),
                    "used_mib": process["used_mib"],
                    "unit": process["unit"],
                    "kind": kind_of(process["comm"], argv),
                    "uid_ok": owner is not None and process["uid"] == owner.pw_uid,
                    "ppid": process["ppid"],
                    "age_s": process["age_s"],
                    "cpu_s": stat["cpu_s"],
                    "proc_state": stat["state"],
                    "health": None,
                    "port": port_of(argv),
                }
            )
    return found


def account(user):
    """The user's entry in the password database (pwd.struct_passwd), None where there is no such user."""
    import pwd

    try:
        return pwd.getpwnam(user)
    except KeyError:
        return None


def arguments(pid, proc="/proc"):
    """The words of a process's command line; [""] where it is gone."""
    return (text_or_none(f"{proc}/{pid}/cmdline") or "").split("\0")


def process_stat(pid, proc="/proc"):
    """{state, start, cpu_s} of /proc/PID/stat: state letter, start in ticks after boot (0 unknown), CPU seconds."""
    text = text_or_none(f"{proc}/{pid}/stat") or ""
    # The name in brackets may hold anything; what follows the last bracket starts at field 3 (man proc).
    fields = text.rpartition(")")[2].split()
    if len(fields) < 20:
        return {"state": None, "start": 0, "cpu_s": None}
    cpu = (int(fields[11]) + int(fields[12])) / ticks_per_second()
    return {"state": fields[0].upper(), "start": int(fields[19]), "cpu_s": cpu}


def kind_of(comm, argv):
    """A process's kind by the names that Ollama gave its own: server, runner (before 0.30 both `ollama`) or other."""
    if comm == "ollama":
        return "server" if "serve" in argv else "runner" if "runner" in argv else "other"
    return "runner" if comm in ("llama-server", "ollama_llama_se", "ollama-runner") else "other"


def port_of(argv):
    """The port that a runner's command line names, None where it names none."""
    for index, word in enumerate(argv[:-1]):
        if word == "--port" and argv[index + 1].isdigit():
            return int(argv[index + 1]) or None
    return None
