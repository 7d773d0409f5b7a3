"""A whole federation on one machine: real processes, real certificates, own folders, and faults on demand."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from medveil.errors import ConfigError, EngineError, RunError

_KILL = re.compile(r"(?P<who>[a-z0-9][a-z0-9-]*)@step:(?P<step>[0-9]+)")
_POLL_S = 0.25
_START_S = 60.0
_RESTART_S = 3.0


@dataclass(frozen=True)
class Kill:
    """A fault: all processes of a party are killed, as a power cut would, and started again a few seconds later.

    Args:
        who: a site, or "server".
        step: after this committed round.
    """

    who: str
    step: int

    @classmethod
    def parse(cls, text: str) -> "Kill":
        """Read ``site-2@step:30``.

        Raises:
            ConfigError: not of this form.
        """
        found = _KILL.fullmatch(text)
        if found is None:
            raise ConfigError("A fault is not of the form WHO@step:N", got=text, expected="for example site-2@step:30")
        return cls(found["who"], int(found["step"]))


class Trial:
    """Processes of one server and its sites. Used with ``with``; all are ended on the way out.

    Args:
        kits: by name; the server's is "server".
        launch: words before a party's command, by name: to run it in a network of its own.
    """

    def __init__(self, kits: Mapping[str, Path], launch: Mapping[str, Sequence[str]] | None = None) -> None:
        self._kits, self._launch = dict(kits), dict(launch or {})
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            for name in ("server", *(name for name in self._kits if name != "server")):
                self.start(name)
                if name == "server":
                    self._wait_for_port()
        except BaseException:  # Ctrl-C too: no process is left behind
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                _kill_group(process)

    def start(self, name: str) -> None:
        """Start a party's process, in a group of its own."""
        kit = self._kits[name]
        verb = "server" if name == "server" else "site"
        with (kit / "output.txt").open("ab") as output:
            self._processes[name] = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [*self._launch.get(name, ()), sys.executable, "-m", "medveil", "connect", verb, str(kit)],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """Kill all of a party's processes at once."""
        _kill_group(self._processes[name])

    def check(self) -> None:
        """Whether all processes still run.

        Raises:
            EngineError: one has ended by itself.
        """
        for name, process in self._processes.items():
            if process.poll() is not None:
                lines = (self._kits[name] / "output.txt").read_text(encoding="utf-8", errors="replace").splitlines()
                raise EngineError(
                    f"The process of {name} has ended",
                    got=lines[-1][:300] if lines else f"exit code {process.returncode}",
                    remedy="see output.txt and log.txt in its kit",
                )

    def _wait_for_port(self) -> None:
        config = json.loads((self._kits["server"] / "startup" / "fed_server.json").read_text(encoding="utf-8"))
        host, port = config["servers"][0]["service"]["target"].rsplit(":", 1)
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            self.check()
            with suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
                return
            time.sleep(_POLL_S)
        raise EngineError("The server did not start", expected=f"within {_START_S:g} s", remedy="see its output.txt")


def follow(
    server: Path,
    first_job: str,
    *,
    trial: Trial,
    kills: Sequence[Kill],
    say: Callable[[str], None],
    timeout: float,
) -> Path:
    """Watch a run to its end, and injure it on the way.

    Args:
        server: the server's kit.
        first_job: of the run.
        trial: the processes.
        kills: faults, each once.
        say: told where the run stands.
        timeout: seconds.

    Returns:
        The run's folder, with its record.

    Raises:
        RunError: the run failed, or did not end in time.
        EngineError: a process ended by itself.
    """
    waiting = sorted(kills, key=lambda kill: kill.step)
    restarts: list[tuple[float, str]] = []
    end, said = time.monotonic() + timeout, ""
    while time.monotonic() < end:
        folder = _folder(server, first_job)
        stands = _progress(folder)
        if stands and (text := str(stands["stands"])) != said:
            said = text
            say(text)
        while waiting and stands and stands["round"] >= waiting[0].step:
            kill = waiting.pop(0)
            say(f"killing {kill.who} after round {stands['round']}")
            trial.kill(kill.who)
            restarts.append((time.monotonic() + _RESTART_S, kill.who))
        for due in [one for one in restarts if one[0] <= time.monotonic()]:
            restarts.remove(due)
            say(f"starting {due[1]} again")
            trial.start(due[1])
        if folder is not None and _state(server, first_job) == "done":
            return folder
        if not restarts:
            trial.check()
        state = _state(server, first_job)
        if state == "failed":
            raise RunError("The run failed", got=said, remedy="see events.jsonl in the run folder")
        time.sleep(_POLL_S)
    raise RunError("The run did not end in time", got=said, expected=f"within {timeout:g} s")


def _folder(server: Path, first_job: str) -> Path | None:
    for path in (server / "medveil" / "runs").glob("*/state/network.json"):
        with suppress(OSError, ValueError):
            if json.loads(path.read_text(encoding="utf-8")).get("first_job") == first_job:
                return path.parent.parent
    return None


def _progress(folder: Path | None) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        if folder is not None:
            content: dict[str, Any] = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
            return content
    return None


def _state(server: Path, job: str) -> str:
    """State of the last job of a run."""
    state = "waiting"
    while job:
        try:
            content = json.loads((server / "medveil" / "jobs" / f"{job}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return state
        state, job = content["status"], content.get("next") or ""
    return str(state)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and all that it started, job processes in sessions of their own included."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for_sites(connected: Callable[[], Mapping[str, float]], sites: Sequence[str], trial: Trial) -> None:
    """Wait until every site is connected.

    Raises:
        EngineError: a process ended, or a site did not connect in time.
    """
    end = time.monotonic() + _START_S
    missing: set[str] = set(sites)
    while time.monotonic() < end:
        missing = set(sites) - set(connected())
        if not missing:
            return
        trial.check()
        time.sleep(_POLL_S)
    raise EngineError(
        "Sites did not connect", got=", ".join(sorted(missing)), remedy="see output.txt and log.txt in their kits"
    )
