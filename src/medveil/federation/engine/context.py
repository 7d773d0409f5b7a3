"""What the engine hands to a program, and what the program hands back."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medveil.federation.channel import Channel

Ending = Literal["done", "failed", "again"]
"""How a coordinator's program ended: the run is complete, cannot go on, or goes on in a further job."""


@dataclass(frozen=True)
class Submitter:
    """Who signed and submitted a job: taken from the certificate that signed it, not from what the server says."""

    name: str
    org: str
    role: str


@dataclass(frozen=True)
class JobContext:
    """One job, as one participant sees it.

    Attributes:
        job_id: the engine's name of this job (one attempt at a run).
        me: ``"server"`` or the site's name.
        sites: at the server, the sites that the job was deployed to; empty at a site.
        app: the job's own files; ``plan.json`` lies in it, as its submitter signed it.
        home: the participant's own folder, the root of its kit.
        submitter: who submitted the job.
        abort: set when the engine ends the job.
        channel: frames to and from the other side.
        nonce: 32 hexadecimal digits that the submitter drew and signed: one submission, one nonce, one run, however
            many jobs it takes.
    """

    job_id: str
    me: str
    sites: tuple[str, ...]
    app: Path
    home: Path
    submitter: Submitter
    abort: threading.Event
    channel: Channel
    nonce: str
