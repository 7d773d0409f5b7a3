"""A federation of real processes on this machine, for tests and for the benchmark."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from medveil.connect.job import Federation
from medveil.connect.provision import provision

SITES = ("site-1", "site-2", "site-3")
PARTS = ("echo_parts.EchoExecutor", "echo_parts.EchoController")
ECHO = Path(__file__).parent / "echo"
COMMAND = "import sys; from pathlib import Path; from medveil.connect.process import {0}; {0}(Path(sys.argv[1]))"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def federation_toml(port, sites=SITES):
    return "\n".join(
        [
            'name = "echo"',
            f'server = {{ host = "localhost", port = {port}, org = "hub" }}',
            'users = [{ name = "lead@a.org", org = "a", role = "lead" },',
            '  { name = "other@b.org", org = "b", role = "lead" },',
            '  { name = "member@b.org", org = "b", role = "member" }]',
            "sites = [" + ", ".join(f'{{ name = "{site}", org = "org_{site[-1]}" }}' for site in sites) + "]",
        ]
    )


class Running:
    """Server and sites, each a process, with an echo job."""

    def __init__(self, folder, sites=SITES):
        self.folder, self.sites = folder, sites
        (folder / "federation.toml").write_text(federation_toml(free_port(), sites))
        self.kits = provision(folder, parts=PARTS)
        self.processes = {}
        self.home = self.kits["server"]

    def start(self, name):
        run = "run_server" if name == "server" else "run_site"
        kit = self.kits[name].relative_to(self.folder)  # as people type it; the engine changes the folder
        self._start(name, ["-c", COMMAND.format(run), str(kit)])

    def start_hostile(self, name, report, *arguments):
        """A site or person with the code of ``echo/hostile.py``; what it got comes into ``report``."""
        self._start(f"hostile-{name}", [str(ECHO / "hostile.py"), *map(str, (self.kits[name], report, *arguments))])

    def _start(self, name, arguments):
        environment = {**os.environ, "PYTHONPATH": str(ECHO), "OMP_NUM_THREADS": "1"}
        with (self.folder / f"{name}.out").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *arguments],
                env=environment,
                cwd=self.folder,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def start_all(self):
        for name in ("server", *self.sites):
            self.start(name)

    def output(self, name):
        return (self.folder / f"{name}.out").read_text()

    def job_process(self, name):
        """The process of the job that this participant runs."""
        found = [p for p in psutil.Process(self.processes[name].pid).children() if "_process" in " ".join(p.cmdline())]
        return found[-1] if found else None

    def kill(self, name):
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def stop(self):
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()

    def login(self, name="lead@a.org"):
        return Federation(self.kits[name])

    def submit(self, plan=None, name="echo"):
        with self.login() as federation:
            return federation.submit(json.dumps(plan or {}).encode(), name=name, sites=self.sites, parts=PARTS)

    def state(self, job_id):
        path = self.home / "medveil" / "jobs" / f"{job_id}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def report(self, job_id):
        path = self.home / f"report-{job_id}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def until(self, what, limit_s=60, every_s=0.2):
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            found = what()
            if found:
                return found
            time.sleep(every_s)
        outputs = "\n".join(f"--- {name}\n{self.output(name)[-3000:]}" for name in ("server", *self.sites))
        raise AssertionError(f"not within {limit_s} s; the outputs end with:\n{outputs}")

    def hold(self):
        (self.home / "hold").touch()

    def release(self):
        (self.home / "hold").unlink(missing_ok=True)
