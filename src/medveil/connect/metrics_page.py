"""A page of figures for Prometheus, from the files that a server or site keeps; no patient data, no scores.

It is made of ``progress.json``, ``events.jsonl`` and ``metrics.jsonl``, in Prometheus's text format, version 0.0.4.
"""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509

from medveil import __version__
from medveil.connect.kit import Kit, kind_of_kit, read_kit
from medveil.connect.observing import PROGRESS_FILE
from medveil.errors import ConfigError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LOOPBACK = "127.0.0.1"
_REQUEST_S = 5.0
_TAIL = 1 << 16

Labels = dict[str, str]
Sample = tuple[str, str, str, Labels, float]  # name, type, help, labels, value


def serve_metrics(folder: Path, port: int, host: str = LOOPBACK) -> ThreadingHTTPServer:
    """Serve ``http://HOST:PORT/metrics`` from a thread of its own, for as long as this process runs.

    Args:
        folder: the kit of a server or site.
        port: TCP port; 0 takes a free one.
        host: address to listen on; by default this machine only. There is no password.

    Returns:
        The listener; ``shutdown`` ends it.

    Raises:
        ConfigError: the kit of a person or no kit, or the port cannot be used.
    """
    kind = kind_of_kit(folder)
    if kind == "person":
        raise ConfigError("A person's kit has no metrics", expected="the kit of a server or of a site")
    kit = read_kit(folder, kind)

    class Page(BaseHTTPRequestHandler):
        """Answers one request."""

        timeout = _REQUEST_S
        server_version = "medveil"
        sys_version = ""

        def do_GET(self) -> None:
            """Send the page."""
            found = self.path.partition("?")[0] == "/metrics"
            body = metrics_page(kit).encode() if found else b"see /metrics\n"
            self.send_response(HTTPStatus.OK if found else HTTPStatus.NOT_FOUND)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing: a scrape every few seconds is no news."""

    try:
        listener = ThreadingHTTPServer((host, port), Page)
    except OSError as error:
        raise ConfigError(
            f"The page of metrics cannot be served on {host}:{port}",
            got=error.strerror,
            remedy="choose another --metrics-port, or stop the program that has it",
        ) from None
    listener.daemon_threads = True
    threading.Thread(target=listener.serve_forever, name="medveil-metrics", daemon=True).start()
    return listener


def metrics_page(kit: Kit) -> str:
    """The page, as the files are now; a file that is missing or half written is left out."""
    lines: list[str] = []
    families: dict[str, list[Sample]] = {}
    for sample in _samples(kit):
        families.setdefault(sample[0], []).append(sample)
    for name, samples in families.items():
        lines += [f"# HELP {name} {samples[0][2]}", f"# TYPE {name} {samples[0][1]}"]
        lines += [f"{name}{_labels(labels)} {value!r}" for _, _, _, labels, value in samples]
    return "\n".join(lines) + "\n"


def _samples(kit: Kit) -> Iterator[Sample]:
    about = {"version": __version__, "kind": kit.kind, "name": kit.name}
    yield "medveil_info", "gauge", "Always 1.", about, 1.0
    expires = _expires(kit)
    if expires is not None:
        yield "medveil_certificate_expires_seconds", "gauge", "When the kit's certificate ends.", {}, expires
    home = kit.folder / "medveil"
    yield from _of_server(home) if kit.kind == "server" else _of_site(home)


def _of_server(home: Path) -> Iterator[Sample]:
    states = Counter(_value(path, "status", "unknown") for path in (home / "jobs").glob("*.json"))
    for state, count in sorted(states.items()):
        yield "medveil_jobs", "gauge", "Jobs by how they stand.", {"status": str(state)}, float(count)
    for run in sorted((home / "runs").glob("*/" + PROGRESS_FILE)):
        content, name = _read(run), {"run": run.parent.name}
        if content is None:
            continue
        yield "medveil_run_round", "gauge", "Rounds committed.", name, _number(content.get("round"))
        yield "medveil_run_rounds", "gauge", "Rounds planned.", name, _number(content.get("rounds"))
        done = (run.parent / "manifest.json").exists()
        yield "medveil_run_finished", "gauge", "1 when the run holds its record.", name, float(done)
        changed = run.stat().st_mtime
        yield "medveil_run_changed_seconds", "gauge", "When the run last moved.", name, round(changed, 3)
        last = _last_line(run.parent / "metrics.jsonl")
        yield "medveil_run_seconds", "gauge", "Seconds of training.", name, _number(last.get("seconds"))
        yield "medveil_run_sites", "gauge", "Sites in the latest round.", name, _number(last.get("sites"))
        for (what, site), count in sorted(_happenings(run.parent / "events.jsonl").items()):
            labels = {**name, "what": what, "site": site}
            yield "medveil_run_events_total", "counter", "What happened to sites and server.", labels, float(count)


def _of_site(home: Path) -> Iterator[Sample]:
    content = _read(home / PROGRESS_FILE)
    if content is None:
        return
    stands = {"plan": str(content.get("plan_hash"))[:12]}
    yield "medveil_site_round", "gauge", "Round that is being trained.", stands, _number(content.get("round"))
    yield "medveil_site_rounds", "gauge", "Rounds planned.", stands, _number(content.get("rounds"))
    running = content.get("state") == "running"
    silent = running and content.get("server") == "silent"
    yield "medveil_site_running", "gauge", "1 while a job goes on.", {}, float(running)
    yield (
        "medveil_site_server_silent",
        "gauge",
        "1 while nothing is heard of the server.",
        {},
        float(silent),
    )
    totals = content.get("totals")
    for key, text in (
        ("steps", "Rounds of the latest job."),
        ("compute_seconds", "Seconds of computing; an upper bound under differential privacy."),
        ("secure_sum_seconds", "Seconds of the secure sum; likewise."),
        ("bytes_received", "Bytes of messages from the server."),
        ("bytes_sent", "Bytes of messages to the server."),
        ("server_lost", "Times that the server fell silent."),
    ):
        value = _number(totals.get(key)) if isinstance(totals, dict) else 0.0
        yield f"medveil_site_{key}_total", "counter", text, {}, value


def _happenings(path: Path) -> Counter[tuple[str, str]]:
    counted: Counter[tuple[str, str]] = Counter()
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                happening = _object(line)
                what, site = str(happening.get("what")), happening.get("site")
                if site is not None or what == "server-back":
                    counted[what, "server" if site is None else str(site)] += 1
    except OSError:
        pass
    return counted


def _last_line(path: Path) -> dict[str, Any]:
    """The last whole line, without reading a long file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return {}
    return _object(lines[-1]) if lines else {}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return _object(path.read_text(encoding="utf-8")) or None
    except OSError:
        return None


def _value(path: Path, key: str, default: str) -> str:
    return str((_read(path) or {}).get(key, default))


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _expires(kit: Kit) -> float | None:
    name = "server.crt" if kit.kind == "server" else "client.crt"
    try:
        certificate = x509.load_pem_x509_certificate((kit.folder / "startup" / name).read_bytes())
    except (OSError, ValueError):
        return None
    return certificate.not_valid_after_utc.timestamp()


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
