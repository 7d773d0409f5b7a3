"""Dealer, vendor and hospital over links: what is used once, who is refused, who vanishes."""

import os
import socket
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from medveil.encrypted import compile as compile_network
from medveil.encrypted.dealer import Dealer, fetch_as_hospital, fetch_as_vendor, seed_file
from medveil.encrypted.hospital import Hospital
from medveil.encrypted.program import Weights
from medveil.encrypted.protocol import evaluate
from medveil.encrypted.protocol.ring import wide_bytes
from medveil.encrypted.serial import program_hash
from medveil.encrypted.stores.store import Store
from medveil.encrypted.vendor import Vendor
from medveil.encrypted.wire.link import Link
from medveil.errors import AuthenticityError, ConfigError, FederationError, ImageError, MessageError, ProtocolError

SHAPE = (1, 12, 12)
PATIENCE = 1.5


class Background:
    """A function in a thread; its result or its error."""

    def __init__(self, function, *arguments):
        self._function, self._arguments = function, arguments
        self.error = self.result = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            self.result = self._function(*self._arguments)
        except Exception as error:  # noqa: BLE001 - looked at by the test
            self.error = error

    def end(self):
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self


def links():
    one, other = socket.socketpair()
    return Link(one, timeout_s=PATIENCE), Link(other, timeout_s=PATIENCE)


@pytest.fixture(scope="module")
def compiled():
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 2),
    ).eval()  # fmt: skip
    return network, compile_network(network, SHAPE, (0.0, 1.0))


@pytest.fixture
def dealt(compiled, tmp_path, monkeypatch):
    """Stores of both parties for three evaluations, dealt over links."""
    monkeypatch.setenv("MEDVEIL_HOME", str(tmp_path / "home"))
    dealer = Dealer(tmp_path / "dealer")
    near, far = links()
    serving = Background(dealer.serve_vendor, far)
    fetch_as_vendor(near, compiled[1].program, tmp_path / "vendor", images=1, count=3)
    run = serving.end().result
    assert serving.error is None
    near, far = links()
    serving = Background(dealer.serve_hospital, far)
    fetch_as_hospital(near, run, tmp_path / "hospital")
    assert serving.end().error is None
    return dealer, run


def image(seed=0):
    return torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(seed))


def encoded(images, program):
    return np.rint(images.double().numpy() * 2.0**program.input.scale).astype(np.int64)


def begin(compiled, tmp_path, **options):
    """A session; the vendor's thread and the hospital's side."""
    near, far = links()
    vendor = Vendor(compiled.program, compiled.weights, tmp_path / "vendor", description={"name": "test"})
    serving = Background(vendor.serve, far)
    return serving, Hospital(near, **options), near


def test_three_diagnoses_and_no_fourth(compiled, dealt, tmp_path):
    network, made = compiled
    serving, session, _ = begin(made, tmp_path)
    assert (session.offer.left, session.offer.description) == (3, {"name": "test"})
    for seed in range(3):
        result, measured = session.diagnose(encoded(image(seed), made.program), tmp_path / "hospital")
        with torch.no_grad():
            wanted = network(image(seed)).numpy()
        assert np.abs(result - wanted).max() < 1e-3
        online = made.describe()["bytes_online"]["both"]
        assert online < measured.bytes_sent + measured.bytes_received < online + 40 * measured.messages
    with pytest.raises(ProtocolError, match="No correlation is left"):
        session.diagnose(encoded(image(), made.program), tmp_path / "hospital")
    session.end()
    assert serving.end().result == 3


@pytest.mark.parametrize(
    "wrong",
    [
        lambda images: images[:, :, :-1],
        lambda images: np.concatenate([images, images]),
        lambda images: images + 2**17,
        lambda images: images - 2**16 - 1,
        lambda images: images.astype(np.float64),
    ],
)
def test_an_image_that_does_not_fit_is_refused_before_anything_is_sent_or_used(compiled, dealt, tmp_path, wrong):
    serving, session, link = begin(compiled[1], tmp_path)
    session.program()
    before = link.bytes_sent
    with pytest.raises(ImageError):
        session.diagnose(wrong(encoded(image(), compiled[1].program)), tmp_path / "hospital")
    assert link.bytes_sent == before
    assert Store(tmp_path / "hospital", party="hospital", program=session.offer.program).left == 3
    session.end()
    assert serving.end().error is None


def test_a_vendor_cannot_tell_that_an_image_was_refused_at_a_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVEIL_HOME", str(tmp_path / "home"))
    network = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(200, 2)).eval()
    with torch.no_grad():
        network[0].weight.fill_(1.0)
    made, dealer, seen = compile_network(network, SHAPE, (0.0, 1.0), activation_limit=4.0), Dealer(tmp_path / "d"), []
    near, far = links()
    serving = Background(dealer.serve_vendor, far)
    fetch_as_vendor(near, made.program, tmp_path / "vendor", images=1, count=2)
    run = serving.end().result
    near, far = links()
    Background(dealer.serve_hospital, far)
    fetch_as_hospital(near, run, tmp_path / "hospital")
    for pixel in (0.0, 1.0):
        near, far = links()
        serving = Background(Vendor(made.program, made.weights, tmp_path / "vendor").serve, far)
        session = Hospital(near)
        values = encoded(torch.full((1, *SHAPE), pixel), made.program)
        if pixel:  # 9 before the ReLU; the session is over without the caller's help
            with pytest.raises(ImageError, match="beyond the range that it was compiled for"):
                session.diagnose(values, tmp_path / "hospital")
        else:
            session.diagnose(values, tmp_path / "hospital")
            session.end()
        assert serving.end().error is None
        session.end()
        seen.append((serving.result, far.frames_received, far.bytes_received, far.frames_sent, far.bytes_sent))
        far.close()  # as after any session: all that came was asked for, and the end is a clean one
    assert seen[0] == seen[1]
    assert seen[0][0] == 1


def test_a_correlation_that_one_party_has_used_is_refused_by_the_other(compiled, dealt, tmp_path):
    """A hospital whose store was put back, with its journal, asks for number 0 a second time."""
    made = compiled[1]
    with Store(tmp_path / "vendor", party="vendor", program=program_hash(made.program)).take(0):
        pass
    serving, session, _ = begin(made, tmp_path)
    with pytest.raises(FederationError):
        session.diagnose(encoded(image(), made.program), tmp_path / "hospital")
    assert "used before" in str(serving.end().error)
    serving, session, _ = begin(made, tmp_path)  # the next one works
    session.diagnose(encoded(image(), made.program), tmp_path / "hospital")
    session.end()
    assert serving.end().result == 1


@pytest.mark.parametrize("who", ["vendor", "hospital"])
def test_when_one_vanishes_the_other_ends_in_time_and_the_next_image_works(compiled, dealt, tmp_path, monkeypatch, who):
    made = compiled[1]
    original = getattr(evaluate, who)

    class GoneError(Exception):
        pass

    def vanish(half, link, *rest):
        link.flush()
        link.close(discard=True)
        raise GoneError

    serving, session, _ = begin(made, tmp_path)
    monkeypatch.setattr(evaluate, who, vanish)
    begun = time.monotonic()
    with pytest.raises(FederationError if who == "vendor" else GoneError):
        session.diagnose(encoded(image(), made.program), tmp_path / "hospital")
    serving.end()
    assert serving.error is not None
    if who == "hospital":
        assert isinstance(serving.error, FederationError)
    assert time.monotonic() - begun < 3 * PATIENCE
    monkeypatch.setattr(evaluate, who, original)
    for party in ("vendor", "hospital"):  # the correlation is burnt at both
        assert Store(tmp_path / party, party=party, program=program_hash(made.program)).left == 2
    serving, session, _ = begin(made, tmp_path)
    session.diagnose(encoded(image(), made.program), tmp_path / "hospital")
    session.end()
    assert serving.end().result == 1


def test_the_model_travels_once_where_it_is_kept(compiled, dealt, tmp_path):
    made, sent = compiled[1], []
    for harm in (None, None, b"", b"xy"):
        if harm is not None:  # cut off, and changed in its last byte
            (tmp_path / "kept").write_bytes((tmp_path / "kept").read_bytes()[:-1] + harm)
        near, far = links()
        serving = Background(Vendor(made.program, made.weights, tmp_path / "vendor").serve, far)
        session = Hospital(near, kept=tmp_path / "kept")
        before = near.bytes_received
        session.program()
        sent.append(near.bytes_received - before)
        session.end()
        assert serving.end().error is None
    assert sent[1] == 0
    assert sent[0] == sent[2] == sent[3] > 0
    near, far = links()
    serving = Background(Vendor(made.program, made.weights, tmp_path / "vendor").serve, far)
    session = Hospital(near, kept=tmp_path / "kept")
    result, _ = session.diagnose(encoded(image(), made.program), tmp_path / "hospital")
    session.end()
    with torch.no_grad():
        assert np.abs(result - compiled[0](image()).numpy()).max() < 1e-3


def test_a_store_serves_one_models_weights(compiled, dealt, tmp_path):
    """Two models under the same masks would show their difference, and programs do not tell them apart."""
    made = compiled[1]
    Vendor(made.program, made.weights, tmp_path / "vendor")
    Vendor(made.program, made.weights, tmp_path / "vendor")
    other = {name: values + (name == "_6") for name, values in made.weights.weights.items()}
    assert any((other[name] != values).any() for name, values in made.weights.weights.items())
    with pytest.raises(ProtocolError, match="other weights"):
        Vendor(made.program, Weights(other, made.weights.biases), tmp_path / "vendor")


def test_a_hospital_with_another_runs_correlations_is_told(compiled, dealt, tmp_path):
    dealer, _ = dealt
    near, far = links()
    serving = Background(dealer.serve_vendor, far)
    fetch_as_vendor(near, compiled[1].program, tmp_path / "other", images=1, count=1)
    serving.end()
    near, far = links()
    vendor = Vendor(compiled[1].program, compiled[1].weights, tmp_path / "other")
    serving = Background(vendor.serve, far)
    session = Hospital(near)
    with pytest.raises(ProtocolError, match="another run"):
        session.diagnose(encoded(image(), compiled[1].program), tmp_path / "hospital")
    session.end()
    serving.end()


def test_the_dealer_gives_a_hospitals_part_once(dealt, tmp_path):
    dealer, run = dealt
    near, far = links()
    serving = Background(dealer.serve_hospital, far)
    with pytest.raises(FederationError):
        fetch_as_hospital(near, run, tmp_path / "again")
    assert serving.end().error is not None
    assert not (tmp_path / "again").exists()


def test_a_run_that_was_dealt_for_one_hospital_is_nobody_elses(compiled, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVEIL_HOME", str(tmp_path / "home"))
    made, dealer = compiled[1], Dealer(tmp_path / "dealer")
    near, far = links()
    serving = Background(dealer.serve_vendor, far)
    fetch_as_vendor(near, made.program, tmp_path / "vendor", images=1, count=1, hospital="north")
    run = serving.end().result
    for name, fits in (("south", False), ("", False), ("north", True)):
        near, far = links()
        far.peer = name
        serving = Background(dealer.serve_hospital, far)
        if fits:
            fetch_as_hospital(near, run, tmp_path / "hospital")
            assert serving.end().error is None
        else:
            with pytest.raises(FederationError):
                fetch_as_hospital(near, run, tmp_path / f"stolen{name}")
            assert isinstance(serving.end().error, FederationError)
    for name, fits in (("south", False), ("north", True)):
        near, far = links()
        far.peer = name
        serving = Background(Vendor(made.program, made.weights, tmp_path / "vendor").serve, far)
        if fits:
            Hospital(near).end()
            assert serving.end().error is None
        else:
            with pytest.raises(FederationError):
                Hospital(near)
            assert isinstance(serving.end().error, AuthenticityError)


@pytest.mark.parametrize("run", ["", "..", "0" * 32, "../vendor", "given", "a" * 300])
def test_the_dealer_gives_nothing_for_a_run_that_it_does_not_hold(dealt, tmp_path, run):
    near, far = links()
    serving = Background(dealt[0].serve_hospital, far)
    with pytest.raises(FederationError):
        fetch_as_hospital(near, run, tmp_path / "again")
    assert isinstance(serving.end().error, FederationError)


def test_what_each_party_holds(compiled, dealt, tmp_path):
    """After a diagnosis: no weight at the hospital or dealer, no image at the vendor or dealer, no secret open."""
    made = compiled[1]
    serving, session, _ = begin(made, tmp_path, kept=tmp_path / "hospital.model")
    images = encoded(image(), made.program)
    session.diagnose(images, tmp_path / "hospital")
    session.end()
    assert serving.end().result == 1

    def pieces(values):
        """Sixteen bytes each, as numbers lie in memory and as they travel."""
        whole = values.ravel().view(np.uint64)
        forms = [whole.tobytes(), whole.astype("<u4").tobytes()]
        return [form[at : at + 16] for form in forms for at in range(0, len(form) - 16, 16)]

    def content(party):
        paths = [path for path in tmp_path.rglob("*") if path.is_file() and party in str(path.relative_to(tmp_path))]
        return b"".join(path.read_bytes() for path in paths)

    weights = [piece for each in made.weights.weights.values() for piece in pieces(each)]
    shown = wide_bytes(made.weights.weights[made.program.linears()[0].name].view(np.uint64))
    assert any(piece in shown for piece in weights)  # the scan finds weights that travel without their masks
    assert len(content("hospital")) > len(shown)
    for party in ("hospital", "dealer"):
        assert not any(piece in content(party) for piece in weights)
    for party in ("vendor", "dealer"):
        assert not any(piece in content(party) for piece in pieces(images))
    assert seed_file(tmp_path / "vendor").stat().st_mode & 0o077 == 0
    for party in ("hospital", "vendor"):
        secret = [path for path in (tmp_path / party).iterdir() if path.is_file()]
        assert all(path.stat().st_mode & 0o077 == 0 for path in secret)


def test_a_store_that_is_there_is_not_written_over(compiled, dealt, tmp_path):
    near, far = links()
    serving = Background(dealt[0].serve_vendor, far)
    with pytest.raises(ConfigError):
        fetch_as_vendor(near, compiled[1].program, tmp_path / "vendor", images=1, count=1)
    near.close(discard=True)
    assert serving.end().error is not None


def test_random_bytes_for_a_program_are_refused_by_the_dealer(tmp_path):
    near, far = links()
    serving = Background(Dealer(tmp_path / "dealer").serve_vendor, far)
    near.tell({"want": "deal", "program_bytes": 1000, "images": 1, "count": 1, "hospital": ""})
    near.send(os.urandom(1000))
    near.flush()
    assert isinstance(serving.end().error, MessageError)
    assert "not a program" in str(serving.error)


@pytest.mark.parametrize("hospital", [None, 7, ["north"], "two\nlines", "x" * 65])
def test_a_run_for_what_is_no_name_is_refused(compiled, tmp_path, hospital):
    near, far = links()
    serving = Background(Dealer(tmp_path / "dealer").serve_vendor, far)
    near.tell({"want": "deal", "program_bytes": 10, "images": 1, "count": 1, "hospital": hospital})
    near.send(bytes(10))
    near.flush()
    assert isinstance(serving.end().error, ProtocolError)
    assert "names no hospital" in str(serving.error)
