"""Dealer, vendor and hospital as programs of their own, and all three on one machine for a demonstration."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

from medveil.encrypted.dealer import Dealer, fetch_as_hospital, fetch_as_vendor, owner
from medveil.encrypted.hospital import Hospital
from medveil.encrypted.program import Reveal
from medveil.encrypted.vendor import Vendor
from medveil.encrypted.wire.certificates import make_authority, make_certificate
from medveil.encrypted.wire.connect import Address, Identity, Listener, connect
from medveil.encrypted.wire.link import Link
from medveil.errors import ConfigError, FederationError, ImageError, MedveilError, RunError
from medveil.study.diagnosis import (
    Served,
    decode,
    encode,
    read_description,
    read_image,
    serve_run,
)
from medveil.study.diagnosis_answer import answer, check_told, leakage, shown

Say = Callable[[dict[str, Any]], None]


def run_dealer(
    identity: Identity, folder: Path, *, vendors: Address, hospitals: Address, times: int | None, say: Say
) -> None:
    """Deal to vendors and give hospitals their part, each kind one after the other.

    Args:
        identity: the dealer's.
        folder: for the hospitals' parts until they are fetched.
        vendors: where vendors connect.
        hospitals: where hospitals connect.
        times: vendors, and hospitals, to serve; None serves without end.
        say: told the ports, and every failure.
    """
    dealer = Dealer(folder)
    for_vendors = Listener(vendors, identity, role="vendor")
    for_hospitals = Listener(hospitals, identity, role="hospital")
    say({"vendors": for_vendors.port, "hospitals": for_hospitals.port})
    sides = ((for_vendors, dealer.serve_vendor), (for_hospitals, dealer.serve_hospital))
    threads = [threading.Thread(target=_serve, args=(*side, times, say), daemon=True) for side in sides]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _serve(listener: Listener, act: Callable[[Link], object], times: int | None, say: Say) -> None:
    """Serve parties one after the other; one that fails is told why, does not count, and stops nobody else."""
    done = 0
    while times is None or done < times:
        try:
            with listener.accept() as link:
                try:
                    act(link)
                except MedveilError as error:
                    link.stop(error.what)
                    raise
            done += 1
        except Exception as error:  # noqa: BLE001 - whatever one party sends or meets, the next one is served
            say({"refused": str(error) if isinstance(error, MedveilError) else type(error).__name__})


def run_vendor(
    identity: Identity,
    run: Path,
    store: Path,
    *,
    dealer: Address,
    at: Address,
    count: int,
    times: int | None,
    say: Say,
    reveal: Reveal = "logits",
    reveal_bits: int = 16,
    levels: int = 20,
    hospital: str = "",
) -> None:
    """Serve the model of a run; correlations are fetched from the dealer first where there is no store.

    Args:
        identity: the vendor's.
        run: folder of the run.
        store: of correlations.
        dealer: where the dealer listens to vendors.
        at: where hospitals connect.
        count: evaluations to have dealt.
        times: sessions to serve; None serves without end.
        say: told the port, and every failure.
        reveal: as of :func:`~medveil.study.diagnosis.serve_run`, as the next two.
        reveal_bits: fraction bits of the logits that a hospital learns.
        levels: of the probabilities that it learns.
        hospital: name on the certificate of the only hospital that these correlations are for; empty for any.

    Raises:
        ConfigError: the store was dealt for another hospital than the one named, or for any.
    """
    served = serve_run(run, reveal=reveal, reveal_bits=reveal_bits, levels=levels)
    program = served.compiled.program
    if not store.exists():
        with connect(dealer, identity, role="dealer", timeout_s=600.0) as link:
            fetch_as_vendor(link, program, store, images=1, count=count, hospital=hospital)
    elif hospital and owner(store) != hospital:
        raise ConfigError(
            "The store was not dealt for this hospital alone",
            remedy="give another --store, or leave --hospital out",
        )
    description = served.description.model_dump(mode="json")
    vendor = Vendor(program, served.compiled.weights, store, description=description)
    listener = Listener(at, identity, role="hospital")
    say({"listening": listener.port})
    _serve(listener, vendor.serve, times, say)


def prepare_hospital(identity: Identity, store: Path, *, vendor: Address, dealer: Address) -> dict[str, Any]:
    """Fetch this hospital's correlations for what a vendor offers."""
    with connect(vendor, identity, role="vendor") as link:
        session = Hospital(link)
        run = session.offer.run
        session.end()
    with connect(dealer, identity, role="dealer") as link:
        fetch_as_hospital(link, run, store)
    return {"run": run, "program": session.offer.program, "description": session.offer.description}


def diagnose(
    identity: Identity,
    store: Path,
    image: Path,
    *,
    vendor: Address,
    position: int | None = None,
    note: Callable[[str], None] = lambda _line: None,
) -> dict[str, Any]:
    """One diagnosis.

    Args:
        identity: the hospital's.
        store: of the hospital's correlations.
        image: file.
        vendor: where the vendor listens.
        position: of the slice, where the model reads slices.
        note: told, before anything of the image is sent, who will learn what.

    Returns:
        What :func:`~medveil.study.diagnosis_answer.answer` says, ``exact`` (logits; None where bits were revealed),
        ``bytes_online`` (both ways, frames too), ``bytes_setup`` (program and masked weights, where they are not kept
        beside the store), ``messages``, ``seconds_online``, ``seconds_prepared`` and ``leakage``.

    Raises:
        ImageError: the image cannot be used, and nothing of it was sent; or it drove the network beyond a limit. The
            vendor sees a session that ends as any other.
        FederationError: the vendor cannot be reached, refuses, or breaks the protocol.
    """
    with connect(vendor, identity, role="vendor", timeout_s=300.0) as link:
        session = Hospital(link, kept=store.with_name(f"{store.name}.model"))
        try:
            description = read_description(session.offer.description)
            front, back = description.parts()
            images = read_image(image, description, position=position)
            program = session.program()
            check_told(description, program)
            terms = leakage(description, program.output.shape)
            for who in ("hospital", "vendor", "dealer"):
                note(f"The {who} will learn: {'; '.join(terms[f'{who}_learns'])}")
            setup = link.bytes_sent + link.bytes_received
            result, measured = session.diagnose(encode(images, program, front), store)
        except ImageError:
            with suppress(FederationError):
                session.end()  # as any other session: what became of the image is the hospital's to know
            raise
        session.end()
    found = decode(result, back)
    return {
        **answer(found, description),
        "exact": found[0].tolist() if description.reveal == "logits" else None,
        "bytes_online": measured.bytes_sent + measured.bytes_received,
        "bytes_sent": measured.bytes_sent,
        "bytes_received": measured.bytes_received,
        "bytes_setup": setup,
        "messages": measured.messages,
        "seconds_online": measured.seconds_online,
        "seconds_prepared": measured.seconds_offline,
        "leakage": terms,
    }


def local(
    run: Path,
    image: Path,
    *,
    position: int | None = None,
    reveal: Reveal = "logits",
    levels: int = 20,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Dealer, vendor and hospital as three processes of this machine, and the plain network for comparison.

    Args:
        run: folder of the vendor's run.
        image: file of the hospital.
        position: of the slice, where the model reads slices.
        reveal: as of :func:`~medveil.study.diagnosis.serve_run`.
        levels: likewise.
        note: told what happens.

    Returns:
        As :func:`diagnose`, with ``seconds_offline`` (from the start until all was dealt and fetched;
        the dealer has ended by then), ``plaintext_max_error`` (largest difference of a logit, or of a rounded
        probability, from the plain network's; None where neither is revealed) and ``plaintext_agrees`` (whether label,
        or every pixel of the mask, is the same).

    Raises:
        ImageError: the image cannot be used; nothing was started.
        RunError: a party failed, with what it said.
        UnsupportedLayer: a network that cannot be evaluated on encrypted images.
    """
    begun = time.perf_counter()
    served = serve_run(run, reveal=reveal, levels=levels)
    images = read_image(image, served.description, position=position)
    with tempfile.TemporaryDirectory(prefix="medveil-") as made:
        folder = Path(made)
        keys = folder / "keys"
        authority = make_authority(keys)
        for role in ("dealer", "vendor", "hospital"):
            make_certificate(keys, authority=authority, role=role, name=f"local {role}")
        home = {"MEDVEIL_HOME": str(folder / "home")}
        note("The dealer starts")
        ports = ["--vendors", "127.0.0.1:0", "--hospitals", "127.0.0.1:0", "--times", "1"]
        with _party(keys, "dealer", ["--folder", str(folder / "dealt"), *ports], home) as (dealer, told):
            note("The vendor compiles its model and has correlations dealt")
            asked = ["--model", str(run), "--store", str(folder / "vendor"), "--listen", "127.0.0.1:0"]
            asked += ["--dealer", f"127.0.0.1:{told['vendors']}", "--count", "1", "--times", "2"]
            asked += ["--reveal", reveal, "--levels", str(levels), "--hospital", "local hospital"]
            with _party(keys, "vendor", asked, home) as (_, offered):
                vendor = ["--vendor", f"127.0.0.1:{offered['listening']}", "--store", str(folder / "hospital")]
                note("The hospital fetches its correlations; the dealer ends")
                _finish(keys, [*vendor, "--dealer", f"127.0.0.1:{told['hospitals']}", "--prepare"], home)
                dealer.wait(timeout=60)
                offline = time.perf_counter() - begun
                note("The hospital asks for a diagnosis")
                which = [] if position is None else ["--slice", str(position)]
                found = _finish(keys, [*vendor, "--image", str(image), *which], home)
    return {**found, "seconds_offline": offline, **_compared(served, images, found)}


def _compared(served: Served, images: torch.Tensor, found: dict[str, Any]) -> dict[str, Any]:
    with torch.no_grad():
        logits = served.module(images).double()
    plain = answer(shown(logits, served.description), served.description)
    same = "mask" if served.description.task == "segmentation" else "label"
    exact, error = found["exact"], None
    if exact is not None:
        error = float((torch.tensor(exact, dtype=torch.float64).reshape(logits.shape) - logits).abs().max())
    elif "probabilities" in plain:
        error = max(abs(found["probabilities"][name] - each) for name, each in plain["probabilities"].items())
    return {"plaintext_max_error": error, "plaintext_agrees": found[same] == plain[same]}


def _command(keys: Path, role: str, arguments: list[str]) -> list[str]:
    identity = ["--authority", str(keys / "authority.pem"), "--certificate", str(keys / f"{role}.pem")]
    identity += ["--key", str(keys / f"{role}-key.pem")]
    return [sys.executable, "-m", "medveil", "infer", role, *identity, *arguments, "--json"]


@contextmanager
def _party(
    keys: Path, role: str, arguments: list[str], home: dict[str, str]
) -> Iterator[tuple["subprocess.Popen[str]", dict[str, Any]]]:
    """A party that listens, and the ports that it told."""
    process = subprocess.Popen(  # noqa: S603 - medveil itself, with arguments of this program
        _command(keys, role, arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | home,
    )
    assert process.stdout is not None
    try:
        yield process, _told(role, process, process.stdout)
    finally:
        process.terminate()
        process.wait(timeout=30)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def _told(role: str, process: "subprocess.Popen[str]", output: IO[str]) -> dict[str, Any]:
    line = output.readline()
    if not line:
        assert process.stderr is not None
        raise _failed(role, process.stderr.read())
    told: dict[str, Any] = json.loads(line)
    return told


def _finish(keys: Path, arguments: list[str], home: dict[str, str]) -> dict[str, Any]:
    """A hospital's process, run to its end."""
    ended = subprocess.run(  # noqa: S603 - medveil itself, with arguments of this program
        _command(keys, "hospital", arguments),
        capture_output=True,
        text=True,
        env=os.environ | home,
        check=False,
    )
    if ended.returncode:
        raise _failed("hospital", ended.stderr)
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def _failed(role: str, said: str) -> RunError:
    last = said.strip().splitlines()[-1:] or ["nothing"]
    return RunError(f"The {role} failed", got=last[0], remedy="mend what it says, and try again")
