#!/usr/bin/python

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_info
short_description: Return the NVIDIA GPUs of a host, their driver and processes
version_added: 1.0.0
description:
  - Reads every GPU through NVML, and the driver as loaded, as installed for every kernel, and as a library.
  - Reports problems such as no GPU, no driver, no library, a library of another version, or a GPU that
    fell off the bus. It does not fail for any of these. A value that cannot be read is null and never 0.
  - Uses C(nvidia-ml-py) of O(python), or of its own Python, or the program C(nvidia-smi), or the library directly.
  - Changes nothing.
author:
  - The gpufleet.llm maintainers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.llm.attributes.info
options:
  python:
    description:
      - A Python with nvidia-ml-py, such as the role P(gpufleet.llm.cuda#role) installs. The module restarts itself
        with it. A path that does not exist is ignored.
    type: path
    default: /opt/gpufleet/venv/bin/python
  path_rootfs:
    description: Directory that contains the host's C(/proc), C(/sys), C(/lib/modules), C(/boot) and C(/var/lib/dkms).
    type: path
    default: /
  ollama_version:
    description: Release of Ollama to check the driver against. The default is a current one.
    type: str
  expected_gpus:
    description: Expected GPUs. A difference is one of the RV(problems).
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the GPU or a part of it, case-insensitive.
        type: str
        required: true
      count:
        description: Number of such GPUs.
        type: int
        default: 1
"""

EXAMPLES = r"""
- name: Read the state of the GPUs
  gpufleet.llm.gpu_info:
    expected_gpus:
      - name: RTX 4090
        count: 2
  register: gpus

- name: Stop where something is the matter
  ansible.builtin.fail:
    msg: "{{ gpus.problems | map(attribute='message') | join(' ') }}"
  when: gpus.problems | length > 0

- name: Show who holds how much of the cards' memory
  ansible.builtin.debug:
    msg: "{{ item.unit }} ({{ item.pid }}): {{ item.used_mib }} MiB"
  loop: "{{ gpus.processes or [] }}"
"""

RETURN = r"""
state:
  description: >-
    C(ok); C(no_library) (libnvidia-ml is not there); C(no_driver) (the kernel module is not loaded); C(mismatch)
    (library and module are of different versions); C(no_permission); C(no_gpu) (the driver drives none); C(error).
  type: str
  returned: always
  sample: ok
message:
  description: What RV(state) means and what to do; null when it is C(ok).
  type: str
  returned: always
  sample: null
gpus:
  description:
    - One entry a GPU, in the order of the PCI bus. C(state) of each is C(ok), C(lost) or C(error), with C(message).
    - Memory is in MiB. C(total_mib) less C(reserved_mib) can be used; C(used_mib) is without what is reserved, unless
      C(reserved_mib) is null.
    - Null stands for what the card or its driver does not say.
  type: list
  elements: dict
  returned: always
  sample:
    - index: 0
      state: ok
      message: null
      uuid: GPU-40900000-0000-4000-8000-000000000000
      name: NVIDIA GeForce RTX 4090
      pci_bus_id: "00000000:01:00.0"
      compute_capability: "8.9"
      total_mib: 24564
      reserved_mib: 354
      used_mib: 12764
      free_mib: 11446
      gpu_util_percent: 3
      memory_util_percent: 1
      temperature_c: 55
      power_w: 55.0
      power_limit_w: 450.0
      power_default_limit_w: 450.0
      power_enforced_limit_w: 450.0
      power_min_limit_w: 150.0
      power_max_limit_w: 600.0
      throttle_reasons: []
      throttled: false
      ecc_enabled: null
      mig_enabled: null
      persistence_enabled: true
      pcie_generation: 4
      pcie_generation_max: 4
      pcie_width: 16
      pcie_width_max: 16
      pcie_replays: 0
      recovery_action: none
processes:
  description: Who uses the GPUs; null when no GPU answered. C(used_mib) is null where the driver does not say.
  type: list
  elements: dict
  returned: always
  sample:
    - pid: 812
      type: compute
      used_mib: 12763
      unit: ollama.service
      ppid: 790
      uid: 997
      comm: llama-server
      exe: /opt/ollama/0.32.15/lib/ollama/llama-server
      age_s: 4711.5
      gpu_index: 0
      gpu_uuid: GPU-40900000-0000-4000-8000-000000000000
driver:
  description:
    - The driver. C(loaded_version) is the kernel module's, C(library_version) that of libnvidia-ml, and C(kernels)
      says for each installed kernel which module is on disk, with C(next) on the one that boots next.
    - C(ollama) is the branch that Ollama wants at least, and which of its CUDA libraries this driver serves.
    - C(reboot) says whether a reboot is needed and why, and whether it is safe, that is, whether the kernel that
      boots next has a module of the library's version.
  type: dict
  returned: always
  sample:
    loaded_version: 580.126.09
    library_version: 580.126.09
    branch: r580_00
    nvml_version: 13.580.126.09
    cuda_version: "13.0"
    flavour: open
    running_kernel: 6.1.0-50-amd64
    next_kernel: 6.1.0-50-amd64
    kernels:
      - kernel: 6.1.0-50-amd64
        running: true
        next: true
        bootable: true
        version: 580.126.09
        path: /lib/modules/6.1.0-50-amd64/updates/dkms/nvidia.ko
        module: nvidia
        flavour: open
        signed: false
        error: null
    dkms:
      - module: nvidia
        version: 580.126.09
        kernel: 6.1.0-50-amd64
        state: installed
        error: null
    secure_boot: false
    nouveau_loaded: false
    distribution: {id: debian, version_id: "12", pretty_name: Debian GNU/Linux 12 (bookworm)}
    ollama: {minimum: 550, libraries: [cuda_v12, cuda_v13], ok: true}
    reboot: {needed: false, reason: null, safe: true, blocked_by: null}
problems:
  description: >-
    Everything that is the matter, with a C(code) (C(platform), C(no_library), C(not_loaded), C(mismatch),
    C(no_permission), C(no_gpu), C(error), C(gpu_lost), C(gpu_error), C(driver_too_old), C(gpus_differ), C(nouveau),
    C(reboot_needed), C(reboot_blocked)), a C(message), and C(stops), which says which hosts cannot serve with it (C(always) any,
    C(gpu) those that need a GPU, C(never) none).
  type: list
  elements: dict
  returned: always
  sample: []
source:
  description: Who answered, C(pynvml), C(nvidia-smi) or C(libnvidia-ml).
  type: str
  returned: always
  sample: pynvml
client:
  description:
    - The Python that read NVML and the versions of the distributions C(nvidia_ml_py) and C(pynvml) in it (null for none).
      C(pynvml) is deprecated and hooks every start of Python; it should not be there.
    - C(python_found) says whether O(python) exists, and C(python_in_venv) whether a virtual environment holds it.
  type: dict
  returned: always
  sample:
    python: /opt/gpufleet/venv/bin/python
    python_found: true
    python_in_venv: true
    nvidia_ml_py: 13.615.71
    pynvml: null
uid:
  description: Effective user ID that the module ran under.
  type: int
  returned: always
  sample: 0
"""

import os
import sys

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.respawn import has_respawned, respawn_module

from ansible_collections.gpufleet.llm.plugins.module_utils._driver import problems as driver_problems
from ansible_collections.gpufleet.llm.plugins.module_utils._driver import state as driver_state
from ansible_collections.gpufleet.llm.plugins.module_utils._driver import versions
from ansible_collections.gpufleet.llm.plugins.module_utils._gpu import client, sample


def observe(asked):
    """Everything that the module returns, for its options."""
    taken = sample.sample()
    state = driver_state.observe(asked["path_rootfs"], taken)
    problems = driver_problems.judge(state, taken, asked["ollama_version"], asked["expected_gpus"])
    capabilities = [gpu["compute_capability"] for gpu in taken["gpus"] if gpu["compute_capability"]]
    ml_py, deprecated = client.versions()
    return {
        "state": taken["state"],
        "message": taken["message"],
        "source": taken["source"],
        "gpus": [{key: value for key, value in gpu.items() if key != "processes"} for gpu in taken["gpus"]],
        "processes": sample.processes(taken),
        "driver": dict(
            state,
            branch=taken["driver_branch"],
            nvml_version=taken["nvml_version"],
            cuda_version=taken["cuda_version"],
            ollama=versions.ollama_serves(
                state["loaded_version"] or state["library_version"],
                asked["ollama_version"],
                min(capabilities, key=versions.version_key, default=None),
            ),
            reboot=driver_problems.reboot(state),
        ),
        "problems": problems,
        "client": {
            "python": sys.executable,
            "python_found": os.access(asked["python"], os.X_OK),
            "python_in_venv": os.path.isfile(os.path.join(os.path.dirname(asked["python"]), "..", "pyvenv.cfg")),
            "nvidia_ml_py": ml_py,
            "pynvml": deprecated,
        },
        "uid": os.geteuid(),
    }


def main():
    module = AnsibleModule(
        argument_spec={
            "python": {"type": "path", "default": "/opt/gpufleet/venv/bin/python"},
            "path_rootfs": {"type": "path", "default": "/"},
            "ollama_version": {"type": "str"},
            "expected_gpus": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"name": {"type": "str", "required": True}, "count": {"type": "int", "default": 1}},
            },
        },
        supports_check_mode=True,
    )
    asked = module.params
    # The managed client before any other, so that every host of a fleet answers by the same version.
    if not has_respawned() and os.access(asked["python"], os.X_OK) and asked["python"] != sys.executable:
        respawn_module(asked["python"])
    try:
        module.exit_json(changed=False, **observe(asked))
    except versions.DriverError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
