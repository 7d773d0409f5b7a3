"""A test seam outside the product: at a named point of the protocol a site's job process kills itself (SIGKILL).

It also writes down each site's plain vector before it is masked, and each sum that the server opens: for tests only.

The control folder (MEDVEIL_DROPOUTS) holds, written by the script: ``arms/SITE.json``, a list of points at which the
site dies, and ``gate.json``, whether the server goes on after a round. Written here: ``kills.jsonl``, ``sums.jsonl``,
``sums/*.npy``, ``vectors/*.npy``, ``held.json``.
"""

import json
import os
import signal
import time
from pathlib import Path
from typing import ClassVar

import numpy as np

FOLDER = Path(os.environ["MEDVEIL_DROPOUTS"])
_FLUSH_S = 20.0
# Points by the message that comes, that is about to go, and that has gone.
HEARD = {
    "Task": "task-received",
    "Ask": "task-received",
    "Survivors": "opening-asked",
    "Agreed": "agreements-received",
}
UNTOLD = {"Ready": "ready-untold", "Agree": "agreement-not-sent", "Reveal": "share-not-sent"}
TOLD = {
    "Ready": "ready-told",
    "Advertise": "keys-sent",
    "Upload": "header-sent",
    "Chunk": "partly-sent",
    "Agree": "agreement-sent",
    "Reveal": "share-sent",
}


class Here:
    """What this job process is doing."""

    site = job = run = ""
    postman = None
    what = "join"
    round = None
    bytes = 0
    names: ClassVar = {}  # context of a sum: what it is of


def write(path, content):
    """Replace a file in one step."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(content))
    fresh.replace(path)


def read(path, otherwise):
    """A JSON file's content."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return otherwise


def append(path, line):
    """One line, whole."""
    with path.open("ab", buffering=0) as file:
        file.write((json.dumps(line) + "\n").encode())


def save(path, vector):
    """A vector, whole."""
    fresh = path.with_suffix(f".{os.getpid()}")
    with fresh.open("wb") as file:
        np.save(file, vector)
    fresh.replace(path)


def due(phase):
    """The arm that this point fires, if any."""
    for arm in read(FOLDER / "arms" / f"{Here.site}.json", []):
        if (
            arm["phase"] == phase
            and arm.get("what", Here.what) == Here.what
            and arm.get("round", Here.round) == Here.round
            and arm.get("job_not") != Here.job
        ):
            return arm
    return None


def at(phase, *, sent=False):
    """Die here if the script says so; with ``sent`` once the server's link has acknowledged all that was sent."""
    arm = due(phase)
    if arm is None:
        return
    path = FOLDER / "arms" / f"{Here.site}.json"
    write(path, [one for one in read(path, []) if one != arm])
    arrived = Here.postman.flush(_FLUSH_S) if sent else None
    now = time.time()
    line = {"at": now, "site": Here.site, "job": Here.job, "phase": phase, "what": Here.what, "round": Here.round}
    append(FOLDER / "kills.jsonl", {**line, "arrived": arrived, "case": arm["case"]})
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner, name, act):
    """Call ``act`` with the arguments before a method."""
    original = getattr(owner, name)

    def wrapped(self, *args, **kwargs):
        act(self, *args, **kwargs)
        return original(self, *args, **kwargs)

    setattr(owner, name, wrapped)


def after(owner, name, act):
    """Call ``act`` with the object and the result after a method."""
    original = getattr(owner, name)

    def wrapped(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        act(self, result)
        return result

    setattr(owner, name, wrapped)


def key_of(session, step, context):
    """A name for one sum of one session: run, what the vectors are computed from, the parties' common hash, step."""
    return f"{Here.run[:8]}-{context.hex()[:16]}-{session._digest.hex()[:16]}-{step}"


def frames(data):
    """A message, and the secure sum's messages in it."""
    from medveil.federation import messages
    from medveil.secagg import messages as sealed

    message, tensors = messages.decode(data)
    return message, [sealed.decode(frame) for frame in messages.frames_of(tensors)]


def heard(_run, data):
    """Points before the site has done anything with a message of the server."""
    message, inner = frames(data)
    name = type(message).__name__
    if name == "Task":
        Here.what, Here.round = ("scores" if message.validate_model else "round"), message.round
    elif name == "Ask":
        Here.what, Here.round = message.purpose, None
    for one in (name, *(type(one).__name__ for one in inner)):
        if one in HEARD:
            at(HEARD[one])


def untold(_visit, data):
    """Points at which a message is ready, and not sent."""
    message, inner = frames(data)
    for one in (message, *inner):
        name = type(one).__name__
        if name == "Prepare":
            at("shares-not-sent" if one.step == 1 else "next-keys-not-sent", sent=True)
        elif name in UNTOLD:
            at(UNTOLD[name])


def told(_visit, data):
    """Points at which a message has arrived, and nothing after it."""
    message, inner = frames(data)
    for one in (message, *inner):
        name = type(one).__name__
        if name == "Upload":
            Here.bytes = one.receipt.length * one.receipt.bits // 8
        if name == "Prepare":
            at("shares-sent" if one.step == 1 else "sum-sent", sent=True)
        elif name in TOLD and (name != "Chunk" or (one.offset == 0 and len(one.data) < Here.bytes)):
            at(TOLD[name], sent=True)


def wrap_site(program):
    """Put the points into a site's program, and write down what it gives."""
    from medveil.connect.site_run import SiteRun
    from medveil.federation.secure.outbox import Outbox
    from medveil.federation.site import Site
    from medveil.secagg.site import SiteSession

    def begin(_visit, job, _home, postman):
        Here.site, Here.job, Here.run, Here.postman = job.me, job.job_id, job.nonce, postman

    def dump(session, vector, context=b"\0" * 32):
        save(FOLDER / "vectors" / f"{key_of(session, session.step, context)}.{Here.site}.npy", vector)

    visit = program._Visit
    tell = visit._tell

    def telling(self, data):
        untold(self, data)
        tell(self, data)
        told(self, data)

    visit._tell = telling
    before(visit, "__init__", begin)
    before(SiteRun, "receive", heard)
    before(Site, "_contribution", lambda _site, *_: at("charged"))
    after(Outbox, "contribution", lambda _outbox, _vector: at("written-down"))
    before(SiteSession, "submit", dump)


def wrap_server(program):
    """Write down what is opened; go on after a round when the script lets it."""
    from medveil.federation.secure.origin import sum_context
    from medveil.federation.secure.server import SecureServer
    from medveil.federation.tally import TallyServer
    from medveil.secagg.server import ServerSession

    def lead(leader, job, *_):
        del leader
        Here.job, Here.run = job.job_id, job.nonce

    def name_round(_server, purpose, number, start):
        Here.names[sum_context(purpose, number, start)] = (purpose, number)

    def name_tally(tally, _tensors):
        Here.names[tally._origin] = (tally.purpose, None)

    open_ = ServerSession._open

    def opening(session):
        collection = session._collection
        context = collection.included[0].context
        key = key_of(session, collection.step, context)
        open_(session)
        opened = session.opened
        save(FOLDER / "sums" / f"{key}.npy", opened.total)
        what, number = Here.names[context]
        line = {"key": key, "what": what, "round": number, "job": Here.job, "at": time.time()}
        append(FOLDER / "sums.jsonl", {**line, "included": opened.included, "dropped": opened.dropped})

    def hold(leader, *_):
        """After a committed round; links have threads of their own, so nobody falls silent."""
        gate = read(FOLDER / "gate.json", {"open": True, "pace": 0.0})
        end = time.monotonic() + gate["pace"]
        while not leader._job.abort.is_set():
            gate = read(FOLDER / "gate.json", {"open": True, "pace": 0.0})
            if gate["open"] and time.monotonic() >= end:
                return
            if not gate["open"]:
                write(FOLDER / "held.json", {"job": Here.job, "asked": gate["asked"]})
            time.sleep(0.05)

    before(program.Leader, "__init__", lead)
    before(program.Leader, "_look_for_returned", hold)
    before(SecureServer, "begin", name_round)
    before(TallyServer, "ask", name_tally)
    ServerSession._open = opening
