# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""gpu_info as Ansible runs it: arguments on stdin, one JSON document on stdout."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import yaml

from ansible_collections.gpufleet.llm.plugins.module_utils._gpu import shape
from ansible_collections.gpufleet.llm.plugins.modules import gpu_info

REPO = pathlib.Path(__file__).resolve().parents[4]
STATE = """\
driver 580.126.09
cuda 13000
gpu
uuid GPU-a
name NVIDIA GeForce RTX 4090
pci 00000000:01:00.0
capability 8 9
total 24564
reserved 354
used 1000
process {pid} 900
end
"""

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")


@pytest.fixture(scope="session")
def library():
    folder = REPO / ".cache" / "tests" / "nvml"
    subprocess.run([REPO / "lab/nvml/build.sh", folder], check=True)
    return folder


@pytest.fixture
def host(library, tmp_path):
    """A function that runs the module on a host with the simulated card, and returns its answer."""
    subprocess.run([sys.executable, REPO / "lab/nvml/make_rootfs.py", tmp_path / "root"], check=True)
    (tmp_path / "root/etc").mkdir()
    (tmp_path / "root/etc/os-release").write_text("ID=debian\nVERSION_ID=12\n")
    (tmp_path / "state").write_text(STATE.format(pid=os.getpid()))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/modinfo").symlink_to(REPO / "tests/support/modinfo.py")

    def run(interpreter=sys.executable, folder=library, check_mode=False, **options):
        options = dict({"path_rootfs": str(tmp_path / "root"), "python": sys.executable}, **options)
        arguments = {"ANSIBLE_MODULE_ARGS": dict(options, _ansible_check_mode=check_mode)}
        done = subprocess.run(
            [interpreter, "-m", "ansible_collections.gpufleet.llm.plugins.modules.gpu_info"],
            input=json.dumps(arguments),
            capture_output=True,
            text=True,
            check=False,
            env=dict(
                os.environ,
                LD_LIBRARY_PATH=str(folder),
                PATH=os.pathsep.join((str(tmp_path / "bin"), os.environ["PATH"])),
                NVML_SIM_STATE=str(tmp_path / "state"),
                PYTHONPATH=os.pathsep.join(path for path in sys.path if path),
            ),
        )
        assert "Traceback" not in done.stderr, done.stderr
        return json.loads(done.stdout)

    run.state = tmp_path / "state"
    return run


def test_a_well_host(host):
    answer = host()
    assert answer["changed"] is False
    assert (answer["state"], answer["source"], answer["problems"]) == ("ok", "pynvml", [])
    assert answer["gpus"][0]["free_mib"] == 23210
    assert [(entry["pid"], entry["used_mib"], entry["gpu_uuid"]) for entry in answer["processes"]] == [(os.getpid(), 900, "GPU-a")]
    assert answer["driver"]["loaded_version"] == "580.126.09"
    assert answer["driver"]["ollama"]["libraries"] == ["cuda_v12", "cuda_v13"]
    assert answer["client"]["nvidia_ml_py"] is not None
    assert answer["client"]["python_in_venv"] is (sys.prefix != sys.base_prefix)


def test_check_mode_answers_the_same(host):
    # Ages differ; nothing else does.
    first, second = host(), host(check_mode=True)
    for answer in (first, second):
        for process in answer["processes"]:
            process.pop("age_s")
        answer.pop("invocation", None)
    assert first == second


@pytest.mark.parametrize(
    ("line", "state", "code"),
    [
        ("init 9", "no_driver", "not_loaded"),
        ("init 18", "mismatch", "mismatch"),
        ("init 4", "no_permission", "no_permission"),
        ("init 999", "error", "error"),
    ],
)
def test_each_fault_is_an_answer_and_no_failure(host, line, state, code):
    host.state.write_text(STATE.format(pid=1).replace("cuda 13000", line))
    answer = host()
    assert "failed" not in answer
    assert (answer["state"], answer["problems"][0]["code"], answer["gpus"], answer["processes"]) == (state, code, [], None)
    # The files still tell of the driver.
    assert answer["driver"]["loaded_version"] == "580.126.09"
    assert answer["driver"]["library_version"] == "580.126.09"


def test_no_library(host, tmp_path):
    answer = host(folder=tmp_path)
    assert (answer["state"], answer["problems"][0]["code"]) == ("no_library", "no_library")


def test_expectations(host):
    assert host(expected_gpus=[{"name": "4090"}], ollama_version="0.32.15")["problems"] == []
    assert host(expected_gpus=[{"name": "4090", "count": 2}])["problems"][0]["code"] == "gpus_differ"
    wrong = host(ollama_version="newest")
    assert wrong["failed"] is True
    assert "'newest' is not an Ollama version" in wrong["msg"]


def test_a_managed_python_that_is_not_there_is_passed_over(host, tmp_path):
    answer = host(python=str(tmp_path / "absent"))
    assert (answer["client"]["python_found"], answer["client"]["python_in_venv"], answer["state"]) == (False, False, "ok")


def test_what_is_returned_is_documented():
    documented = yaml.safe_load(gpu_info.RETURN)
    answer = gpu_info.observe({"path_rootfs": "/", "python": "/absent", "ollama_version": None, "expected_gpus": []})
    assert set(answer) == set(documented)
    assert set(documented["driver"]["sample"]) == set(answer["driver"])
    assert set(documented["client"]["sample"]) == set(answer["client"])


def test_samples_of_the_documentation_have_the_shape_of_the_reader():
    documented = yaml.safe_load(gpu_info.RETURN)
    gpu = {key for key in shape.EMPTY_GPU if key != "processes"}
    assert set(documented["gpus"]["sample"][0]) == gpu
    process = {"gpu_index", "gpu_uuid", *shape.process(1, "compute", 1, "/nowhere")}
    assert set(documented["processes"]["sample"][0]) == process
