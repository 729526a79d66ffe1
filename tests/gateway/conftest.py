# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gateway's own nginx.conf and JavaScript under the distribution's nginx and njs, in front of a server that keeps what it gets.

nginx and its module are taken from the machine's own APT source, unpacked into the cache and run from
there: nothing is installed. Where there is no such source the tests are skipped and say so.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import pathlib
import re
import shlex
import shutil
import socket
import ssl
import subprocess
import threading
import time

import jinja2
import pytest
import yaml

from ansible_collections.gpufleet.llm.plugins.module_utils._gateway import policy as gateway_policy

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROLE = ROOT / "roles" / "gateway"
CACHE = pathlib.Path(os.environ.get("GPUFLEET_CACHE") or pathlib.Path.home() / ".cache" / "gpufleet")
TOKENS = {name: f"test-token-of-{name}-0123456789abcdef" for name in ("alice", "bob", "carol", "dave", "erin", "frank")}


def packages():
    """Folder that the packages are unpacked into; it has usr/sbin/nginx and the module. Skips where they cannot be had."""
    if not shutil.which("apt-get"):
        pytest.skip("nginx and njs come from APT, which this machine has not")
    wanted = ["nginx", "libnginx-mod-http-js"]
    shown = subprocess.run(["apt-cache", "policy", *wanted], capture_output=True, text=True, check=False).stdout
    target = CACHE / "nginx" / hashlib.sha256("".join(line for line in shown.splitlines() if "Candidate" in line).encode()).hexdigest()[:12]
    if not (target / "complete").exists():
        work = target.with_suffix(f".{os.getpid()}")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        got = subprocess.run(["apt-get", "download", "-q", *wanted], cwd=work, capture_output=True, text=True, check=False)
        if got.returncode:
            pytest.skip(f"APT has no nginx with njs here: {got.stderr.strip().splitlines()[-1:]}")
        for package in work.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, work], check=True)
        (work / "complete").touch()
        shutil.rmtree(target, ignore_errors=True)
        work.rename(target)
    done = subprocess.run([target / "usr/sbin/nginx", "-v"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nginx of this machine's distribution does not run here: {done.stderr}")
    return target


@pytest.fixture(scope="session")
def tree():
    return packages()


def free_port():
    """A port that nobody listens on at this moment."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Server(http.server.ThreadingHTTPServer):
    """Keeps each request it gets: [{path, headers, body}]. `answer` decides what it says."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, name):
        self.name, self.seen, self.answer = name, [], None
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self):
        """Port that it listens on."""
        return self.server_address[1]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers in JSON with the server's name and the path, or as Server.answer says."""

    protocol_version = "HTTP/1.1"
    wbufsize = 65536  # an answer in one segment; two would wait for each other's acknowledgement

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append({"method": self.command, "path": self.path, "headers": dict(self.headers), "body": body})
        if self.server.answer and self.server.answer(self):
            return
        models = [{"name": "qwen3:latest", "id": "qwen3:latest", "size": 9276180000}, {"name": "secret:latest", "id": "secret:latest"}]
        answer = json.dumps({"from": self.server.name, "path": self.path, "models": models, "data": models}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = do_GET  # noqa: N815 - the names that http.server looks for

    def log_message(self, *args):
        """Keep the tests' output short."""


def comment(text, style="plain"):
    """As Ansible's filter: each line of the text behind a mark of the language."""
    mark = {"plain": "#", "c": "//"}[style]
    return "\n".join([mark, *(f"{mark} {line}" for line in str(text).split("\n")), mark])


def environment():
    """Jinja as Ansible sets it up, with the filters that the role's templates use."""
    engine = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    engine.tests["search"] = lambda value, pattern: re.search(pattern, value) is not None
    engine.filters.update(
        bool=lambda value: value if isinstance(value, bool) else str(value).lower() in ("true", "yes", "1"),
        comment=comment,
        quote=lambda value: shlex.quote(str(value)),
        ternary=lambda value, yes, no: yes if value else no,
        to_nice_json=json.dumps,
        unique=lambda value: list(dict.fromkeys(value)),
    )
    return engine


class Gateway:
    """One nginx with the role's configuration."""

    def __init__(self, folder, tree, workers=2, **wishes):
        self.folder, self.tree, self.workers = folder, tree, workers
        self.port, self.http_port = free_port(), free_port()
        for name in ("conf", "program", "tls", "run"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name in ("gateway.js", "pin.js", "renew", "acme", "health"):
            shutil.copy(ROLE / "files" / name, folder / "program" / name)
        self.variables = self._variables(wishes)
        self._render()
        self._certificate()
        self.process = None

    def _variables(self, wishes):
        defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
        models = [{"name": "qwen3", "parameters": {"num_ctx": 40960}}, {"name": "small:1b"}]
        tokens = [
            {"name": "alice", "token": TOKENS["alice"], "rate_per_minute": 600000, "burst": 10000, "streams": 300},
            {"name": "bob", "token": TOKENS["bob"], "pin": "refuse", "models": ["qwen3"]},
            {"name": "carol", "token": TOKENS["carol"], "routes": ["native"]},
            {"name": "dave", "token": TOKENS["dave"], "routes": ["openai"], "models": []},
            {"name": "erin", "token": TOKENS["erin"], "pin": "off"},
            {"name": "frank", "token": TOKENS["frank"], "rate_per_minute": 6, "burst": 5, "streams": 2},
        ]
        values = {
            **defaults,
            "inventory_hostname": "localhost",
            "gateway_names": ["localhost", "127.0.0.1"],
            "gateway_addresses": ["127.0.0.1"],
            "gateway_port": self.port,
            "gateway_http_port": self.http_port,
            "__gateway_page": True,
            "__gateway_parts": yaml.safe_load((ROLE / "vars" / "main.yml").read_text())["__gateway_parts"],
            "gateway_max_body_mib": 8,
            "__gateway_config_dir": str(self.folder / "conf"),
            "__gateway_program_dir": str(self.folder / "program"),
            "__gateway_tls_dir": str(self.folder / "tls"),
            "__gateway_certificate": str(self.folder / "tls" / "server.pem"),
            "__gateway_key": str(self.folder / "tls" / "server.pem"),
            "__gateway_common_name": "gateway.gpufleet.internal",
            "__gateway_webroot": str(self.folder / "acme"),
            "__gateway_drain_flag": str(self.folder / "run" / "drain"),
            "__gateway_guard_fence": str(self.folder / "run" / "fenced"),
            "__gateway_config": "0123456789abcdef",
            **wishes,
        }
        limits = {"pin": values["gateway_pin"], "rate_per_minute": 120, "burst": 20, "streams": 8}
        values.setdefault("__gateway_policy", gateway_policy.policy(values.get("tokens", tokens), values.get("models", models), limits, 8192))
        return values

    def _render(self):
        engine = environment()
        for name in ("nginx.conf", "policy.js", "renew.conf", "upstreams.list"):
            text = engine.from_string((ROLE / "templates" / f"{name}.j2").read_text()).render(self.variables)
            # The world of the test: its own folders, files in place of the journal, and no other user.
            for old, new in {
                "/run/nginx.pid": f"{self.folder}/run/nginx.pid",
                "/usr/lib/nginx/modules/": f"{self.tree}/usr/lib/nginx/modules/",
                "syslog:server=unix:/dev/log,nohostname,tag=gpufleet_gateway_error error": f"{self.folder}/error.log error",
                "syslog:server=unix:/dev/log,nohostname,tag=gpufleet_gateway": f"{self.folder}/access.log",
                "user www-data;": "user root;" if os.getuid() == 0 else "",
                "worker_processes auto;": f"worker_processes {self.workers};",
                "http {\n": "http {\n"
                + "".join(f"    {kind}_temp_path {self.folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")),
            }.items():
                text = text.replace(old, new)
            (self.folder / "conf" / name).write_text(text)

    def _certificate(self):
        subprocess.run(
            ["sh", self.folder / "program" / "renew", "--no-reload"],
            env={**os.environ, "GPUFLEET_RENEW_CONF": str(self.folder / "conf" / "renew.conf")},
            check=True,
        )

    def command(self, *words):
        """Run nginx with this configuration."""
        return subprocess.run(
            [self.tree / "usr/sbin/nginx", "-c", self.folder / "conf" / "nginx.conf", "-p", self.folder, "-e", self.folder / "error.log", *words],
            capture_output=True,
            text=True,
            check=False,
        )

    def start(self):
        """Start it and wait until it answers."""
        checked = self.command("-t", "-q")
        assert checked.returncode == 0, checked.stderr
        started = self.command()
        assert started.returncode == 0, started.stderr
        for _attempt in range(100):
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return self
            except OSError:
                time.sleep(0.05)
        raise AssertionError((self.folder / "error.log").read_text())

    def stop(self):
        """Stop it at once."""
        self.command("-s", "stop")

    def context(self):
        """TLS as a client does it that trusts the gateway's own authority and nothing else."""
        context = ssl.create_default_context(cafile=str(self.folder / "tls" / "ca.crt"))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    def connect(self):
        """An open TLS connection."""
        return self.context().wrap_socket(socket.create_connection(("127.0.0.1", self.port), timeout=30), server_hostname="localhost")

    def ask(self, method, path, body=None, token=None, headers=None, timeout=60):
        """(status, headers, body) of one request; the path goes out as it is written."""
        import http.client

        line = http.client.HTTPSConnection("localhost", self.port, context=self.context(), timeout=timeout)
        given = dict(headers or {})
        if token is not None:
            given.setdefault("Authorization", f"Bearer {TOKENS.get(token, token)}")
        line.putrequest(method, path, skip_host=False, skip_accept_encoding=True)
        if body is not None:
            given.setdefault("Content-Length", str(len(body)))
        for name, value in given.items():
            line.putheader(name, value)
        line.endheaders(body)
        answer = line.getresponse()
        content = answer.read()
        line.close()
        told = {}
        for name, value in answer.getheaders():  # one that is there twice is seen as such
            told[name.lower()] = f"{told[name.lower()]}, {value}" if name.lower() in told else value
        return answer.status, told, content

    def log(self):
        """The access log's lines, each as a dict."""
        return [json.loads(line) for line in (self.folder / "access.log").read_text().splitlines()]


@pytest.fixture(scope="session")
def ollama():
    return Server("ollama")


@pytest.fixture(scope="session")
def page():
    return Server("page")


@pytest.fixture(scope="session")
def gateway(tree, ollama, page, tmp_path_factory):
    made = Gateway(tmp_path_factory.mktemp("gateway"), tree, __gateway_ollama=f"127.0.0.1:{ollama.port}", __gateway_open_webui=f"127.0.0.1:{page.port}").start()
    yield made
    made.stop()


class Pin:
    """The nginx between Open WebUI and Ollama, with the configuration of the role open_webui."""

    def __init__(self, folder, tree, servers, models):
        self.folder, self.tree, self.port = folder, tree, free_port()
        role = ROOT / "roles" / "open_webui"
        shutil.copy(role / "files" / "pin_page.js", folder)
        shutil.copy(ROLE / "files" / "pin.js", folder)
        values = {
            "__open_webui_pin_dir": str(folder),
            "__open_webui_pin_run": str(folder),
            "__open_webui_pin_listen": f"127.0.0.1:{self.port}",
            "__open_webui_pin_max_body_mib": 8,
            "__open_webui_pin_models": models,
            "__open_webui_pin_servers": [{"scheme": "http", "host": "127.0.0.1", "port": port, "path": "", "named": "localhost"} for port in servers],
        }
        engine = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
        engine.filters["to_json"] = json.dumps
        for name in ("pin.conf", "pin_policy.js"):
            text = engine.from_string((role / "templates" / f"{name}.j2").read_text()).render(values)
            for old, new in {
                "/usr/lib/nginx/modules/": f"{tree}/usr/lib/nginx/modules/",
                "syslog:server=unix:/dev/log,nohostname,tag=open_webui_pin": f"{folder}/access.log",
                "error_log stderr": f"error_log {folder}/error.log",
            }.items():
                text = text.replace(old, new)
            (folder / name).write_text(text)
        self.process = None

    def start(self):
        """Start it and wait until it answers."""
        words = [self.tree / "usr/sbin/nginx", "-c", self.folder / "pin.conf", "-p", self.folder, "-e", self.folder / "error.log"]
        checked = subprocess.run([*words, "-t", "-q"], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        self.process = subprocess.Popen(words)
        for _attempt in range(100):
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return self
            except OSError:
                time.sleep(0.05)
        raise AssertionError((self.folder / "error.log").read_text())

    def stop(self):
        """Stop it at once."""
        self.process.terminate()
        self.process.wait(timeout=10)


@pytest.fixture(scope="session")
def open_webui_pin(tree, tmp_path_factory):
    """f(*ports of servers, models=...) that returns a running Pin; the same for the same servers."""
    made = {}

    def start(*servers, models=("qwen3", "small:1b")):
        key = (servers, models)
        if key not in made:
            made[key] = Pin(tmp_path_factory.mktemp("pin"), tree, servers, models if models is None else list(models)).start()
        return made[key]

    yield start
    for one in made.values():
        one.stop()


@pytest.fixture(autouse=True)
def forget(request):
    """Each test sees only its own requests."""
    for name in ("ollama", "page"):
        if name in request.fixturenames:
            server = request.getfixturevalue(name)
            server.seen.clear()
            server.answer = None
