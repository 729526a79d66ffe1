#!/usr/bin/python

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: report
short_description: Judge a load test or a verification, and write the report
version_added: 1.0.0
description:
  - Writes C(report.json), C(report.md) and, with O(html=true), C(report.html) on the machine that it runs on, usually the controller.
  - The HTML is one file without external resources. Matplotlib draws its plots.
author:
  - The gpufleet.llm maintainers (@gpufleet)
requirements:
  - matplotlib, for O(html=true) with samples
extends_documentation_fragment: []
attributes:
  check_mode:
    support: full
    description: Judges without writing.
  diff_mode:
    support: none
    description: The files are written at each run.
options:
  kind:
    description:
      - V(soak) judges samples of hosts, V(compare) the same load with different settings, V(verify) the verification of a fleet.
      - The verdict of V(soak) and V(verify) covers all hosts. The verdict of V(compare) is that of the last setting.
      - V(none) only checks whether the packages for O(html) are installed.
    type: str
    choices: [soak, compare, verify, none]
    default: soak
  measures:
    description: Samples from M(gpufleet.llm.soak_run), for V(soak) and V(compare).
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name in the report, such as the host's name.
        type: str
        required: true
      path:
        description: Path of the file with the samples.
        type: path
        required: true
  hosts:
    description: What M(gpufleet.llm.fleet_check) returned as C(verified) for each host, for C(verify).
    type: list
    elements: dict
    default: []
  limits:
    description: Limits of the verdicts that differ from the defaults. Null reports without judging.
    type: dict
    default: {}
  dest:
    description: Directory for the files. It is created if it does not exist.
    type: path
  html:
    description: Whether to write the HTML report.
    type: bool
    default: true
  title:
    description: Title of the report.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Judge what was measured
  gpufleet.llm.report:
    measures:
      - {name: gpu01, path: ./soak/gpu01.jsonl.gz}
    dest: ./soak
  delegate_to: localhost
"""

RETURN = r"""
verdict:
  description: C(pass) when no verdict of any host failed, else C(fail).
  type: str
  returned: unless kind is none
  sample: pass
table:
  description: The report for a terminal, line by line.
  type: list
  elements: str
  returned: unless kind is none
  sample: ["Soak test: everything is as it should be"]
files:
  description: The files that were written.
  type: list
  elements: str
  returned: always
  sample: [./soak/report.json, ./soak/report.md, ./soak/report.html]
"""

import gzip
import json
import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.llm.plugins.module_utils._fleet.across import across
from ansible_collections.gpufleet.llm.plugins.module_utils._soak import measure, plots, report_html, verdicts
from ansible_collections.gpufleet.llm.plugins.module_utils._soak import report as soak_report


def read_run(path):
    with open(path, "rb") as handle:
        raw = handle.read()
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    return measure.parse(raw.decode("utf-8", "replace").splitlines())


def document(asked):
    if asked["kind"] == "verify":
        return soak_report.verify_document(across(asked["hosts"]), asked["title"])
    runs = [(one["name"], read_run(one["path"])) for one in asked["measures"]]
    return soak_report.soak_document(runs, asked["limits"], asked["kind"], asked["title"])


def main():
    module = AnsibleModule(
        argument_spec={
            "kind": {"type": "str", "choices": ["soak", "compare", "verify", "none"], "default": "soak"},
            "measures": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"name": {"type": "str", "required": True}, "path": {"type": "path", "required": True}},
            },
            "hosts": {"type": "list", "elements": "dict", "default": []},
            "limits": {"type": "dict", "default": {}},
            "dest": {"type": "path"},
            "html": {"type": "bool", "default": True},
            "title": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    asked = module.params
    try:
        if asked["kind"] == "none":
            verdicts.limits_with(asked["limits"])
            if asked["html"]:
                plots.pyplot()
            module.exit_json(changed=False, files=[])
        made = document(asked)
        texts = {"report.json": json.dumps(made, ensure_ascii=False, separators=(",", ":")) + "\n", "report.md": soak_report.markdown(made)}
        if asked["html"]:
            texts["report.html"] = report_html.page(made, plots.plots(made))
    except (plots.ReportError, measure.SoakError) as error:
        module.fail_json(msg=str(error))
    except (OSError, EOFError) as error:
        module.fail_json(msg=f"A measure could not be read ({error}); a file that gpufleet.llm.soak_run fetched was wanted.")
    files = []
    if asked["dest"] and not module.check_mode:
        os.makedirs(asked["dest"], exist_ok=True)
        for name, text in texts.items():
            files.append(os.path.join(asked["dest"], name))
            with open(files[-1], "w", encoding="utf-8") as handle:
                handle.write(text)
    module.exit_json(changed=bool(files), verdict=made["verdict"], table=soak_report.terminal(made), files=files)


if __name__ == "__main__":
    main()
