"""``medveil connect`` as people type it, and its long-running parts as processes."""

import subprocess
import sys
import time
from contextlib import contextmanager

from click.testing import CliRunner

from medveil.cli.main import cli


def run(*arguments):
    answer = CliRunner().invoke(cli, ["connect", *map(str, arguments)], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return answer.output


def until(what, limit_s=180, every_s=1.0):
    end = time.monotonic() + limit_s
    while not (found := what()):
        assert time.monotonic() < end, f"not within {limit_s} s"
        time.sleep(every_s)
    return found


@contextmanager
def running(kits, names):
    """``medveil connect server`` and ``site``, as an administrator starts them; {name: address of its metrics}."""
    processes = []
    try:
        for name in names:
            verb = "server" if name == "server" else "site"
            command = [sys.executable, "-m", "medveil", "connect", verb, str(kits / name), "--metrics-port", "0"]
            with (kits / name / "console.txt").open("wb") as output:
                process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
            processes.append(process)
        yield {name: until(lambda name=name: _address(kits / name)) for name in names}
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(30)


def _address(kit):
    lines = (kit / "console.txt").read_text().splitlines()
    return next((line.rsplit(" ", 1)[1] for line in lines if line.startswith("Figures for Prometheus:")), None)
