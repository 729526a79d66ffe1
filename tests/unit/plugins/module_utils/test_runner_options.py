# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One list of runner options: the copies of other programs agree with it, and it agrees with Ollama's own source."""

from __future__ import annotations

import ast
import os
import pathlib
import re
import shutil
import subprocess

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import parameters, runner_options
from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import declared
from ansible_collections.gpufleet.llm.plugins.module_utils._soak import client as soak_client

ROOT = pathlib.Path(__file__).resolve().parents[4]


def strings(text, start, end):
    """The quoted words between two marks of a program's text."""
    return re.findall(r"""["'](\w+)["']""", text.split(start, 1)[1].split(end, 1)[0])


def test_the_gateway_takes_out_what_the_list_has():
    pin = (ROOT / "roles/gateway/files/pin.js").read_text(encoding="utf-8")
    assert strings(pin, "const RUNNER = [", "];") == list(runner_options.OPTIONS)
    assert strings(pin, "const TOP = [", "];") == list(runner_options.MEMBERS)


def test_the_context_filter_takes_out_what_the_list_has():
    text = (ROOT / "roles/open_webui/files/context_filter.py").read_text(encoding="utf-8")
    assert strings(text, "RUNNER_OPTIONS = (", "\n)") == list(runner_options.ALL)


def test_a_model_of_open_webui_has_none_unless_the_inventory_asks_for_it():
    assert set(declared.complete_models([{"id": "m"}])[0]["params"]) == set(runner_options.ALL)


def test_the_modelfile_knows_each_option_of_the_runner_and_refuses_the_others():
    assert set(runner_options.RUNNER) <= set(parameters.PARAMETERS)
    for name in runner_options.OTHER + runner_options.MEMBERS:
        assert name not in parameters.PARAMETERS
    for name in runner_options.OTHER:
        assert name in parameters.DEPRECATED or name in parameters.NEVER, name


def test_the_soak_test_sends_an_option_where_a_client_would():
    options = {**dict.fromkeys(runner_options.RUNNER, 1), "num_predict": 5}
    request = {"kind": "other_ctx", "messages": [], "options": options, "think": None}
    for kind in ("open_webui", "openai"):
        body = soak_client.Target(kind, "http://127.0.0.1:1", "m").body(request)
        assert body["options"] == dict.fromkeys(runner_options.RUNNER, 1) and body["max_tokens"] == 5


def sources():
    """Folder of Ollama's source, as `make real-server` leaves it in Go's module cache; skips where it is not."""
    cache = os.environ.get("GOMODCACHE") or (
        subprocess.run(["go", "env", "GOMODCACHE"], capture_output=True, text=True, check=True).stdout.strip()
        if shutil.which("go")
        else str(pathlib.Path.home() / "go/pkg/mod")
    )
    folder = pathlib.Path(cache) / f"github.com/ollama/ollama@v{runner_options.RELEASE}"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: `go mod download github.com/ollama/ollama@v{runner_options.RELEASE}` fetches it")
    return folder


def json_names(types, struct):
    """{Go's field: JSON name} of a struct in api/types.go."""
    body = re.search(rf"^type {struct} struct \{{\n(.*?)^\}}", types, re.MULTILINE | re.DOTALL)[1]
    return dict(re.findall(r'^\t(\w+)\s+\S+\s+`json:"(\w+)', body, re.MULTILINE))


def test_the_list_is_what_the_server_compares():
    folder = sources()
    types = (folder / "api/types.go").read_text(encoding="utf-8")
    scheduler = (folder / "server/sched.go").read_text(encoding="utf-8")
    routes = (folder / "server/routes.go").read_text(encoding="utf-8")

    # A loaded runner is kept while its whole struct Runner and the context shift are those of the request.
    reload = re.search(r"\) needsReload\(.*?^\}", scheduler, re.MULTILINE | re.DOTALL)[0]
    assert "optsExisting := runner.Options.Runner\n" in reload and "optsNew := req.opts.Runner\n" in reload
    assert "reflect.DeepEqual(optsExisting, optsNew)" in reload
    runner = json_names(types, "Runner")
    assert set(runner.values()) == set(runner_options.RUNNER)
    assert set(re.findall(r"opts(?:New|Existing)\.(\w+)", reload)) <= set(runner), "what it compares is in the struct"
    assert set(re.findall(r"\breq\.(\w+)", reload)) == {"opts", "model", "numCtxAuto", "numBatchAuto", "contextShift", "shift"}

    # Of a request, the scheduler gets its options and these members; nothing else can reload or unload.
    handed = {name for call in re.findall(r"s\.scheduleRunner\((.*)\)", routes) for name in re.findall(r"\breq\.(\w+)", call)}
    members = {json_names(types, struct)[name] for struct in ("ChatRequest", "GenerateRequest") for name in handed}
    assert members == {"options", *runner_options.MEMBERS}
    unloads = set(re.findall(r"req\.(\w+) != nil && req\.\1\.Duration == 0", routes))
    assert unloads == {"KeepAlive"}


def test_every_python_file_that_names_severalrunner_options_takes_them_from_the_list():
    """A second list is what this file is to prevent."""
    known = {"runner_options.py", "parameters.py"}
    for path in sorted((ROOT / "plugins").rglob("*.py")):
        if path.name in known:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
                named = {item.value for item in node.elts if isinstance(item, ast.Constant)} & set(runner_options.RUNNER)
                assert len(named) < 4, f"{path.relative_to(ROOT)}:{node.lineno} lists {sorted(named)}"
