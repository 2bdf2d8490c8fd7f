"""What the acceptance stages share: programs that are started and always ended, ports, waiting, reading metrics.

A stage proves tidegate against software that other people wrote. Without this file each stage would end its
programs in its own way, and the one that forgets leaves a model server running on the machine.
Used by `llama`, `prometheus`, `docker` and the client programs they start. Standard library only.
"""

import atexit
import hashlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HERE = os.path.join(ROOT, ".ci", "real")
CACHE = os.path.join(ROOT, ".ci", "cache", "real")


class Failed(Exception):
    """The thing under test did not do what it should."""


def check(truth, message):
    """Fails the stage unless `truth`."""
    if not truth:
        raise Failed(message)


def say(text):
    """One line of the stage's report."""
    print(f"  {text}", flush=True)


def free_port():
    """A port nobody listens on right now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# ---------------------------------------------------------------- programs

_running = []


class Program:
    """A program in the background, its output in a log file."""

    def __init__(self, name, argv, log_dir, env=None):
        self.name = name
        self.log = os.path.join(log_dir, f"{name}.log")
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen(
                argv, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=env
            )
        _running.append(self)

    def alive(self):
        """Whether it still runs."""
        return self.process.poll() is None

    def stop(self, patience=15):
        """SIGTERM, and SIGKILL when that is not enough. Returns the exit status."""
        if self.alive():
            self.process.terminate()
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self in _running:
            _running.remove(self)
        return self.process.returncode

    def tail(self, lines=25):
        """The end of its log."""
        with open(self.log, errors="replace") as f:
            return "".join(f.readlines()[-lines:])


def _stop_all():
    for program in reversed(_running[:]):
        program.stop(5)


atexit.register(_stop_all)


def run_stage(name, main, seconds):
    """Runs `main(work_dir)` within `seconds`; prints how long it took; exits non-zero with a reason."""

    def interrupted(signum, _frame):
        raise Failed(f"not done after {seconds} s" if signum == signal.SIGALRM else f"ended by signal {signum}")

    for s in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
        signal.signal(s, interrupted)
    signal.alarm(seconds)
    began = time.monotonic()
    work = tempfile.mkdtemp(prefix=f"tidegate-{name}-")
    print(f"== {name}", flush=True)
    try:
        main(work)
    except (Failed, subprocess.CalledProcessError, OSError) as e:
        signal.alarm(0)
        for program in _running:
            state = "running" if program.alive() else f"ended with {program.process.returncode}"
            print(f"---- {program.name} ({state}), end of its log:\n{program.tail()}", flush=True)
        if isinstance(e, subprocess.CalledProcessError) and e.output:
            print(e.output if isinstance(e.output, str) else e.output.decode(errors="replace"), flush=True)
        print(f"== {name}: FAILED after {time.monotonic() - began:.0f} s: {e}", flush=True)
        sys.exit(1)
    finally:
        signal.alarm(0)
        _stop_all()
        shutil.rmtree(work, ignore_errors=True)
    print(f"== {name}: passed in {time.monotonic() - began:.0f} s", flush=True)


# ---------------------------------------------------------------- installing


def need(packages, *commands):
    """Installs Debian packages unless all commands are there."""
    if all(shutil.which(c) for c in commands):
        return
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    subprocess.run(["apt-get", "update", "-q"], check=False, env=env, **quiet)
    subprocess.run(
        ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages], check=True, env=env, **quiet
    )
    for c in commands:
        check(shutil.which(c), f"{c} is still missing after installing {' '.join(packages)}")


def once(stamp, key, make):
    """Runs `make()` unless it has succeeded before with the same `key`."""
    os.makedirs(CACHE, exist_ok=True)
    path = os.path.join(CACHE, stamp + ".stamp")
    digest = hashlib.sha256(key.encode()).hexdigest()
    if os.path.exists(path) and open(path).read() == digest:
        return False
    make()
    with open(path, "w") as f:
        f.write(digest)
    return True


def tidegate_binary():
    """Path of the release build: `$TIDEGATE_BIN`, else this tree's, built if it is not there."""
    given = os.environ.get("TIDEGATE_BIN")
    if given:
        return given
    path = os.path.join(ROOT, "target", "release", "tidegate")
    if not os.path.exists(path):
        say("building the release binary")
        subprocess.run(["cargo", "build", "--release", "--locked", "--quiet"], cwd=ROOT, check=True)
    return path


# ---------------------------------------------------------------- asking


def get(url, timeout=5, data=None, headers=None, method=None):
    """(status, headers, text) of one request; a refusal is an answer too."""
    request = urllib.request.Request(url, data=data, headers=headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as r:
            return r.status, r.headers, r.read().decode(errors="replace")
    except urllib.error.HTTPError as e:
        with e:
            return e.code, e.headers, e.read().decode(errors="replace")


def wait_for(what, probe, seconds, every=0.05, program=None):
    """Calls `probe()` until it returns something true, and returns that with the seconds it took."""
    began = time.monotonic()
    last = None
    while True:
        try:
            value = probe()
            if value:
                return value, time.monotonic() - began
        except (OSError, ValueError, KeyError) as e:
            last = e
        if program is not None and not program.alive():
            raise Failed(f"{program.name} ended with {program.process.returncode} while we waited for {what}")
        if time.monotonic() - began > seconds:
            raise Failed(f"no {what} after {seconds} s" + (f" ({last})" if last else ""))
        time.sleep(every)


_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)(?: \d+)?$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Metrics:
    """One scrape of a Prometheus text endpoint."""

    def __init__(self, url):
        status, _, text = get(url)
        check(status == 200, f"{url} answered {status}")
        self._read(text)

    @classmethod
    def parse(cls, text):
        """The same from a page that somebody else fetched."""
        self = cls.__new__(cls)
        self._read(text)
        return self

    def _read(self, text):
        self.samples = []
        for line in text.splitlines():
            m = _SAMPLE.match(line)
            if m and not line.startswith("#"):
                self.samples.append((m[1], dict(_LABEL.findall(m[2] or "")), float(m[3])))

    def sum(self, name, **labels):
        """The sum of a metric over all series that carry these labels; None if there is no such series."""
        found = [v for n, have, v in self.samples if n == name and labels.items() <= have.items()]
        return sum(found) if found else None

    def need(self, name, **labels):
        """The same, but the metric has to exist."""
        value = self.sum(name, **labels)
        check(value is not None, f"no metric {name}{labels or ''}")
        return value


class Tidegate:
    """`tidegate run` with a configuration of its own."""

    def __init__(self, name, work, upstream, queue="", scaling='policy = "fixed"\nmax_permits = 4', more=""):
        self.port, self.admin_port = free_port(), free_port()
        self.access_log = os.path.join(work, f"{name}-access.jsonl")
        config = os.path.join(work, f"{name}.toml")
        with open(config, "w") as f:
            f.write(
                f'[listen]\naddress = "127.0.0.1:{self.port}"\n'
                f'[admin]\naddress = "127.0.0.1:{self.admin_port}"\n'
                f"[queue]\n{queue}\n[scaling]\n{scaling}\n"
                f'[[upstream]]\nname = "llama"\nbase_url = "{upstream}"\n'
                f'[telemetry]\naccess_log = "{self.access_log}"\n{more}\n'
            )
        self.base_url = f"http://127.0.0.1:{self.port}/v1"
        self.admin = f"http://127.0.0.1:{self.admin_port}"
        env = {k: v for k, v in os.environ.items() if not k.startswith(("TIDEGATE_", "OPENAI_"))}
        self.program = Program(name, [tidegate_binary(), "run", "--config", config], work, env=env)
        wait_for(
            f"{name} on {self.admin}/healthz", lambda: get(self.admin + "/healthz")[0] == 200, 15, program=self.program
        )

    def metrics(self):
        """A fresh scrape."""
        return Metrics(self.admin + "/metrics")

    def log_lines(self):
        """The access log, each line parsed: one that is not JSON fails."""
        with open(self.access_log) as f:
            return [json.loads(line) for line in f]


# ---------------------------------------------------------------- a model that is not one


class Model:
    """An upstream that answers every chat request after `delay` seconds, for stages that are not about models."""

    def __init__(self, delay=0.05, host="127.0.0.1"):
        self.delay = delay
        self.served = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self):
                self.rfile.read(int(self.headers.get("content-length", 0)))
                time.sleep(outer.delay)
                outer.served += 1
                self.answer({"id": "chatcmpl-1", "object": "chat.completion", "model": "none", "created": 0,
                             "choices": [{"index": 0, "finish_reason": "stop",
                                          "message": {"role": "assistant", "content": "hello"}}],
                             "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})

            def do_GET(self):
                self.answer({"object": "list", "data": [{"id": "none", "object": "model"}]})

            def answer(self, value):
                body = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self.server = Server((host, 0), Handler)
        self.port = self.server.server_address[1]
        self.base_url = f"http://{host}:{self.port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


CHAT = json.dumps({"model": "none", "messages": [{"role": "user", "content": "hi"}]}).encode()


def ask(base_url, timeout=30):
    """One chat request: (status, headers, text)."""
    return get(base_url + "/chat/completions", timeout, CHAT, {"content-type": "application/json"})
