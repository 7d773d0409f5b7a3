"""The dealer, and how the other two fetch what it deals, over links that are already secured."""

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from medveil.encrypted.fitting import numbers
from medveil.encrypted.program import Program
from medveil.encrypted.protocol.deal import deal, weight_masks
from medveil.encrypted.protocol.ring import SEED_BYTES
from medveil.encrypted.serial import MAX_BYTES, from_json, program_hash, to_json
from medveil.encrypted.stores.manifest import Manifest
from medveil.encrypted.stores.store import Store
from medveil.encrypted.stores.writer import StoreWriter
from medveil.encrypted.wire.certificates import is_name
from medveil.encrypted.wire.control import whole
from medveil.encrypted.wire.link import Link
from medveil.errors import ProtocolError

MOST_IMAGES = 4096
_MOST_DEALT = 1 << 20
_PIECE = 1 << 20
_RUN_DIGITS = 32
_RUN = re.compile(f"[0-9a-f]{{{_RUN_DIGITS}}}")
# Numbers of one evaluation together, over all its images.
_MOST_NUMBERS = 1 << 30
SEED_FILE = "weights.seed"


class Dealer:
    """Deals to vendors that ask, and keeps for hospitals what is theirs until they fetch it.

    Args:
        folder: for the hospitals' parts. Who reads it, and hears hospital and vendor, sees the image.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def serve_vendor(self, link: Link) -> str:
        """Deal what a vendor asks for: ``count`` correlations of ``images`` images each.

        Returns:
            The name of the run, by which a hospital fetches its part.

        Raises:
            MessageError: the vendor sends something else than a program.
            ProtocolError: it asks for too much, or goes away.
        """
        asked = link.hear(("want", "program_bytes", "images", "count", "hospital"))
        hospital = asked["hospital"]
        if not isinstance(hospital, str) or (hospital and not is_name(hospital)):
            raise ProtocolError(
                "A vendor names no hospital", got=type(hospital).__name__, expected="a certificate's name, or none"
            )
        size, images, count = (whole(asked[key]) for key in ("program_bytes", "images", "count"))
        if asked["want"] != "deal" or size > MAX_BYTES or images > MOST_IMAGES or count > _MOST_DEALT:
            raise ProtocolError(
                "A vendor asks the dealer for what it does not deal",
                got=f"{count} correlations of {images} images",
                expected=f"at most {_MOST_DEALT} of at most {MOST_IMAGES}",
            )
        program = from_json(link.receive(size))
        if images * numbers(program) > _MOST_NUMBERS:
            raise ProtocolError("So many images together are too large", got=images, remedy="ask for fewer at a time")
        run, seed = secrets.token_hex(16), os.urandom(SEED_BYTES)
        masks = weight_masks(program, seed)
        link.tell({"run": run, "program": program_hash(program)})
        link.send(seed)
        target = self._folder / run
        with StoreWriter(
            target, party="hospital", program=program_hash(program), batch=images, run=run
        ) as hospital_store:
            for _ in range(count):
                ours, theirs = os.urandom(SEED_BYTES), os.urandom(SEED_BYTES)
                with hospital_store.correlation(ours):
                    pass
                link.send(theirs)
                for part in deal(program, masks, hospital=ours, vendor=theirs, images=images):
                    link.send(len(part).to_bytes(8, "little"))
                    link.send(part)
                link.send(bytes(8))
            link.hear(("done",))
            write_owner(target, hospital)
        return run

    def serve_hospital(self, link: Link) -> None:
        """Give a hospital its seeds, once, and forget them.

        Raises:
            ProtocolError: there is no such run, it is another hospital's, or it was fetched before.
        """
        asked = link.hear(("want", "run"))
        run = str(asked["run"])
        folder = self._folder / run[:_RUN_DIGITS]
        there = _RUN.fullmatch(run) and folder.is_dir()
        if asked["want"] != "seeds" or not there or not owns(folder, link.peer):
            raise ProtocolError(
                "A hospital asks for correlations that the dealer does not hold",
                expected="a run that was dealt, for this hospital, and not fetched yet",
                remedy="let the vendor ask the dealer for new ones",
            )
        store = Store(folder, party="hospital", program=Manifest.read(folder).program, journals=self._folder / "given")
        count = len(store.manifest.items)
        link.tell({"program": store.manifest.program, "images": store.manifest.batch, "count": count})
        for _ in range(count):
            with store.take() as correlation:
                link.send(correlation.seed)
        link.hear(("done",))


def fetch_as_vendor(link: Link, program: Program, folder: Path, *, images: int, count: int, hospital: str = "") -> None:
    """Ask the dealer for correlations and write them into a new store.

    Args:
        link: to the dealer.
        program: to be evaluated.
        folder: of the store, which must not exist; the seed of the weights' masks goes beside it.
        images: that one evaluation takes.
        count: evaluations.
        hospital: name on the certificate of the only hospital that may fetch the other part; empty for any.

    Raises:
        ConfigError: a store is there.
        ProtocolError: the dealer refuses, or goes away.
    """
    content = to_json(program)
    wanted = {"want": "deal", "program_bytes": len(content), "images": images, "count": count, "hospital": hospital}
    link.tell(wanted)
    link.send(content)
    said = link.hear(("run", "program"))
    if said["program"] != program_hash(program):
        raise ProtocolError("The dealer deals for another program", got=said["program"], expected=program_hash(program))
    seed = bytes(link.receive(SEED_BYTES))
    with StoreWriter(
        folder, party="vendor", program=program_hash(program), batch=images, run=str(said["run"])
    ) as store:
        for _ in range(count):
            with store.correlation(bytes(link.receive(SEED_BYTES))) as part:
                while size := int.from_bytes(link.receive(8), "little"):
                    _copy(link, size, part.write)
        _write_secret(seed_file(folder), seed)
        write_owner(folder, hospital)
    link.tell({"done": True})
    link.flush()


def _copy(link: Link, size: int, write: Callable[[memoryview], None]) -> None:
    while size:
        piece = link.receive(min(size, _PIECE))
        write(piece)
        size -= len(piece)


def fetch_as_hospital(link: Link, run: str, folder: Path) -> None:
    """Fetch this hospital's seeds from the dealer into a new store.

    Raises:
        ConfigError: a store is there.
        ProtocolError: the dealer refuses, or goes away.
    """
    link.tell({"want": "seeds", "run": run})
    said = link.hear(("program", "images", "count"))
    images, count = whole(said["images"]), whole(said["count"])
    with StoreWriter(folder, party="hospital", program=str(said["program"]), batch=images, run=run) as store:
        for _ in range(count):
            with store.correlation(bytes(link.receive(SEED_BYTES))):
                pass
    link.tell({"done": True})
    link.flush()


def seed_file(folder: Path) -> Path:
    """Where a vendor's store has the seed of the weights' masks."""
    return folder.with_name(f"{folder.name}.{SEED_FILE}")


def write_owner(folder: Path, hospital: str) -> None:
    """Keep beside a store whose run it is."""
    _write_secret(_owner_file(folder), hospital.encode())


def owner(folder: Path) -> str | None:
    """Name of the only hospital that a store's run may be used with; empty for any, None where it was not dealt."""
    try:
        return _owner_file(folder).read_text(encoding="utf-8")
    except FileNotFoundError:  # a run that was not dealt to its end
        return None


def owns(folder: Path, name: str) -> bool:
    """Whether a store's run may be used with the hospital of this name."""
    return owner(folder) in ("", name)


def _owner_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.hospital")


def _write_secret(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(handle)
