#!/usr/bin/python

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: driver_plan
short_description: Compare a host with the requested NVIDIA driver
version_added: 1.0.0
description:
  - Compares the packages of a driver source, branch and kind of kernel modules with those of the host.
  - Returns what one apt transaction would do, which packages to hold, and what prevents it.
  - Also compares configuration files and units, so that the role P(gpufleet.llm.cuda#role) needs one round trip if nothing is to be done.
  - Reads the index of NVIDIA's repository over the network only if something is missing.
  - Changes nothing.
author:
  - The gpufleet.llm maintainers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.llm.attributes.info
options:
  source:
    description: Source of the packages.
    type: str
    choices: [nvidia_repo, distro]
    required: true
  branch:
    description: Driver branch.
    type: int
    required: true
  version:
    description: Exact version. Empty keeps the installed version of the branch, or selects the newest.
    type: str
    default: ""
  flavour:
    description: Kind of kernel modules.
    type: str
    choices: [open, proprietary]
    default: open
  toolkit:
    description: CUDA toolkit to install, such as V(13-0).
    type: str
    default: ""
  upgrade:
    description: Whether to allow replacing an installed driver.
    type: bool
    default: false
  downgrade:
    description: Whether to allow an older version.
    type: bool
    default: false
  remove_other:
    description: Whether to remove packages and APT sources of the other source.
    type: bool
    default: false
  hold:
    description: Whether to hold the driver's packages.
    type: bool
    default: true
  gpu_required:
    description: Whether the host must have a card that Ollama can use.
    type: bool
    default: true
  ollama_version:
    description: Release of Ollama to check the branch against. The default is a current one.
    type: str
  signed_module:
    description: Whether modules that are built on the host are signed with a key that the firmware trusts.
    type: bool
    default: false
  tables:
    description: The package tables by distribution, as in the role's C(files/packages).
    type: dict
    required: true
  repository:
    description: URL of NVIDIA's repositories, without the distribution's directory.
    type: str
    default: https://developer.download.nvidia.com/compute/cuda/repos
  path_rootfs:
    description: Directory that contains the host's C(/proc), C(/sys), C(/lib/modules) and C(/boot).
    type: path
    default: /
  gpus:
    description: The GPUs as M(gpufleet.llm.gpu_info) returns them, for their compute capability.
    type: list
    elements: dict
    default: []
  files:
    description: Configuration files to compare, each with C(path) and C(content).
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Path of the file.
        type: path
        required: true
      content:
        description: Expected content.
        type: str
        required: true
  units:
    description: systemd units to return the state of.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Find out what an upgrade would do
  gpufleet.llm.driver_plan:
    source: nvidia_repo
    branch: 580
    version: 580.126.09
    upgrade: true
    tables: "{{ __cuda_tables }}"
  register: plan

- name: Show it
  ansible.builtin.debug:
    msg: "{{ plan.action }}: {{ plan.install | join(' ') }}"
"""

RETURN = r"""
action:
  description: >-
    C(none), C(install), C(upgrade), C(downgrade), C(change) (the kind of kernel modules), C(repair) (the version is right, something is missing or half
    configured), or C(refused) when RV(problems) were found before it could be told.
  type: str
  returned: always
  sample: upgrade
installed_version:
  description: Version of the driver's packages on the host; null for none.
  type: str
  returned: always
  sample: 580.95.05
target_version:
  description: Version that they are to have.
  type: str
  returned: always
  sample: 580.126.09
install:
  description: Packages for one transaction, as apt takes them.
  type: list
  elements: str
  returned: always
  sample: [nvidia-driver-cuda=580.126.09-1]
pin:
  description: The pinning package, which has to be there before; null for a source without one.
  type: str
  returned: always
  sample: nvidia-driver-pinning-580.126.09
preferences:
  description:
    - What C(/etc/apt/preferences.d/gpufleet-nvidia) has to hold, so that apt takes one version for everything that belongs to the driver; empty
      for a source with a pinning package.
  type: str
  returned: always
  sample: ""
previous_preferences:
  description: The same for the version that is installed.
  type: str
  returned: always
  sample: ""
purge:
  description: Packages of the other source, to be removed first.
  type: list
  elements: str
  returned: always
  sample: []
previous:
  description: The packages as they are now, for a rollback; with RV(previous_pin), the pinning package of now.
  type: list
  elements: str
  returned: always
  sample: [nvidia-driver-cuda=580.95.05-1]
previous_pin:
  description: The pinning package that is installed.
  type: str
  returned: always
  sample: nvidia-driver-pinning-580.95.05
hold:
  description: Packages that have to be held; known when RV(action) is C(none).
  type: list
  elements: str
  returned: always
  sample: [nvidia-driver-cuda]
unheld:
  description: Those among them that are not.
  type: list
  elements: str
  returned: always
  sample: []
release:
  description: Packages that are held now and have to be released for the transaction.
  type: list
  elements: str
  returned: always
  sample: [nvidia-driver-cuda]
builds:
  description: Whether the module is built on the host, by DKMS.
  type: bool
  returned: always
  sample: true
directory:
  description: The distribution's folder in NVIDIA's repository.
  type: str
  returned: always
  sample: debian12
foreign_sources:
  description: APT's files, other than the role's own, that name NVIDIA's repository.
  type: list
  elements: str
  returned: always
  sample: []
files_differ:
  description: Paths of O(files), and of the one for RV(preferences), whose content is another, or that are missing.
  type: list
  elements: str
  returned: always
  sample: []
units:
  description: State of each unit of O(units), as M(gpufleet.llm.host_info) returns it.
  type: dict
  returned: always
  sample: {}
initramfs:
  description: Whether the host has C(update-initramfs).
  type: bool
  returned: always
  sample: true
problems:
  description: What speaks against it, each with a C(code) and a C(message).
  type: list
  elements: dict
  returned: always
  sample: []
"""

import gzip
import shutil

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url

from ansible_collections.gpufleet.llm.plugins.module_utils._driver import offers, packages, plan, selection, versions
from ansible_collections.gpufleet.llm.plugins.module_utils._host import facts, files, units


def fetch_index(address):
    """What a flat repository has, ``{package: [versions]}``; apt verifies later what is installed of it."""
    url = f"{address}/Packages.gz"
    try:
        body = open_url(url, timeout=60).read()
        return offers.parse_index(gzip.decompress(body).decode("utf-8", "replace"))
    except Exception as error:  # urllib, ssl and socket have no class of errors in common
        raise packages.PackagesError(
            f"{url} could not be read ({error}); wanted is the index of NVIDIA's repository. Check cuda_repo_url and the host's way to it. Nothing was changed."
        ) from error


def observe(settings):
    """Everything that the module returns, for its options."""
    observed = packages.observe(hardware=settings["path_rootfs"])
    selected = selection.select(settings, observed["distribution"], settings["tables"].get(observed["distribution"]["id"]))

    def offer():
        if settings["source"] == "nvidia_repo":
            return fetch_index(f"{settings['repository']}/{selected['directory']}/x86_64")
        return offers.ask_apt(selected)

    found = plan.difference(settings, selected, observed, offer, settings["gpus"])
    kept = [{"path": plan.PREFERENCES, "content": found["preferences"]}] if found["preferences"] else []
    return dict(
        found,
        foreign_sources=observed["sources"],
        files_differ=[one["path"] for one in settings["files"] + kept if files.text_or_none(one["path"]) != one["content"]],
        units=units.units(settings["units"]),
        initramfs=shutil.which("update-initramfs", path=facts.SEARCH_PATH) is not None,
    )


def main():
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "str", "choices": ["nvidia_repo", "distro"], "required": True},
            "branch": {"type": "int", "required": True},
            "version": {"type": "str", "default": ""},
            "flavour": {"type": "str", "choices": ["open", "proprietary"], "default": "open"},
            "toolkit": {"type": "str", "default": ""},
            "upgrade": {"type": "bool", "default": False},
            "downgrade": {"type": "bool", "default": False},
            "remove_other": {"type": "bool", "default": False},
            "hold": {"type": "bool", "default": True},
            "gpu_required": {"type": "bool", "default": True},
            "ollama_version": {"type": "str"},
            "signed_module": {"type": "bool", "default": False},
            "tables": {"type": "dict", "required": True},
            "repository": {"type": "str", "default": "https://developer.download.nvidia.com/compute/cuda/repos"},
            "path_rootfs": {"type": "path", "default": "/"},
            "gpus": {"type": "list", "elements": "dict", "default": []},
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"path": {"type": "path", "required": True}, "content": {"type": "str", "required": True}},
            },
            "units": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(changed=False, **observe(module.params))
    except (versions.DriverError, packages.PackagesError, units.HostError) as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
