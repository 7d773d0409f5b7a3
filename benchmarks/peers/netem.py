"""Network namespaces on one machine, joined by `netem.c`: delay, loss, rate and a plug on every line.

Needs Linux, root, ``ip`` of iproute2, /dev/net/tun and a C compiler; nothing of the kernel's traffic control. Only
Python's own library is used.
"""

import ctypes
import json
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

SUBNET = "10.77.0"
_NEW_NET = 0x40000000  # CLONE_NEWNET


def why_not():
    """Why no network of namespaces can be made here; empty where it can."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    for need in ("ip", "cc"):
        if shutil.which(need) is None:
            return f"the command {need} is missing"
    if not Path("/dev/net/tun").exists():
        return "/dev/net/tun is missing"
    name = f"mv{os.getpid()}-probe"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "network namespaces cannot be made"
    inside = subprocess.run(["ip", "netns", "exec", name, "true"], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return "network namespaces cannot be entered" if inside.returncode else ""


class Network:
    """Namespaces with a line each, for the time of a ``with``.

    Args:
        names: of the machines; the first has address 10.77.0.1, the next 10.77.0.2, and so on.
        seed: of the losses.
        congestion: TCP's way to find its speed, by default the system's. On a line with loss it decides: "bbr" passes
            over losses, "reno" and "cubic" take each for a sign of a full line.
    """

    def __init__(self, names, seed=1, congestion=None):
        self.addresses = {name: f"{SUBNET}.{number}" for number, name in enumerate(names, start=1)}
        self._seed, self._congestion = seed, congestion
        self._spaces = {name: f"mv{os.getpid()}-{name}" for name in names}
        self._netem = None

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="netem")
        try:
            program = Path(self._folder.name) / "netem"
            source = Path(__file__).with_name("netem.c")
            subprocess.run(["cc", "-O2", "-o", str(program), str(source)], check=True)
            for space in self._spaces.values():
                subprocess.run(["ip", "netns", "add", space], check=True)
            nodes = [f"{self._spaces[name]}:{address}" for name, address in self.addresses.items()]
            self._netem = subprocess.Popen(
                [str(program), str(self._seed), *nodes], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            self._expect("ready")
            for name in self._spaces if self._congestion else ():
                with self.entered(name):
                    Path("/proc/sys/net/ipv4/tcp_congestion_control").write_text(self._congestion)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self._netem is not None:
            self._netem.stdin.close()
            self._netem.wait(10)
            self._netem.stdout.close()
        for space in self._spaces.values():
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)
        self._folder.cleanup()

    def inside(self, name):
        """Words before a command that is to run on machine ``name``."""
        return ["ip", "netns", "exec", self._spaces[name]]

    @contextmanager
    def entered(self, name):
        """This thread, and what it starts, is on machine ``name``."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self._spaces[name]}", os.O_RDONLY)
        try:
            _enter(there)
            try:
                yield
            finally:
                _enter(own)
        finally:
            os.close(own)
            os.close(there)

    def set(self, name, **values):
        """Change a line, both ways.

        Args:
            name: of the machine.
            values: ``delay`` and ``jitter`` in ms, ``loss`` from 0 to 1, ``rate`` in Mbit/s, ``queue`` in kB.
        """
        for what, value in values.items():
            self._say(f"set {self._spaces[name]} {what} {value}")

    def cut(self, name):
        """Pull the plug: nothing passes."""
        self._say(f"cut {self._spaces[name]}")

    def join(self, name):
        """Put the plug back."""
        self._say(f"join {self._spaces[name]}")

    def stats(self):
        """By machine and way ("out", "in"): packets carried, lost, dropped (queue full), unplugged; and bytes."""
        told = json.loads(self._ask("stats"))
        return {name: told[space] for name, space in self._spaces.items()}

    def _say(self, command):
        self._write(command)
        self._expect("ok")

    def _ask(self, command):
        self._write(command)
        return self._netem.stdout.readline().strip()

    def _write(self, command):
        self._netem.stdin.write(command + "\n")
        self._netem.stdin.flush()

    def _expect(self, answer):
        if (got := self._netem.stdout.readline().strip()) != answer:
            raise RuntimeError(f"netem: {got or 'it ended'}")


def _enter(space):
    if ctypes.CDLL(None, use_errno=True).setns(space, _NEW_NET):
        raise OSError(ctypes.get_errno(), "setns")
