"""Messages and jobs that nobody sane would make: a typed refusal, and never an exception that goes through."""

import io
import json
import shutil
import zipfile

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

pytest.importorskip("nvflare")

from nvflare.fuel.f3.cellnet.core_cell import CoreCell
from nvflare.fuel.f3.message import Message
from nvflare.lighter.utils import load_private_key_file, sign_folders

from medveil.connect.job import build_job
from medveil.connect.provision import provision
from medveil.errors import AuthenticityError
from medveil.federation.engine import guard
from medveil.federation.engine.guard import install_guard, refusal
from medveil.federation.engine.orders import MOST_FILES, MOST_UNPACKED, _modest
from medveil.federation.engine.signed import MANIFEST_FILE, read_manifest, signer
from medveil.federation.engine.streams import Streams

JOB = "2f72b35a-56ea-4786-b0ca-3d2f5cb3e3aa"
CELLS = ["server", f"server.{JOB}", "site-1", f"site-1.{JOB}", "site-2", f"site-2.{JOB}", f"_admin_{JOB}"]
KEYS = [
    *("cn__origin", "cn__destination", "cn__msg_type", "cn__channel", "cn__topic", "cn__conn_url"),
    *("cn__original_headers", "cn__from_cell", "cn__route", "sm__ch", "sm__tp", "sm__id", "sm__sq", "sm__sz", "sm__dt"),
    *("sm__em", "sm__rs", "sm__ws", "sm__cs"),
]
WORDS = [*CELLS, "req", "reply", "return", "medveil", "frame", "sm__STREAM", "sm__DATA", "sm__ACK", "admin", "*", "hci"]
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=20)
) | st.sampled_from(WORDS)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner),
    max_leaves=6,
)
HEADERS = st.dictionaries(st.sampled_from(KEYS), VALUES)
PAYLOADS = st.none() | st.binary(max_size=50) | VALUES


@settings(max_examples=40, deadline=None)
@given(me=st.sampled_from(CELLS), peer=st.sampled_from(CELLS) | st.text(max_size=20), headers=HEADERS)
def test_any_headers_are_heard_or_refused_in_a_sentence(me, peer, headers):
    why = refusal(me, peer, headers)
    assert why is None or (isinstance(why, str) and why)
    if not isinstance(headers.get("cn__origin"), str) or not isinstance(headers.get("cn__destination"), str):
        assert why is not None


@settings(max_examples=40, deadline=None)
@given(headers=HEADERS, payload=PAYLOADS)
def test_any_piece_of_a_stream_is_taken_or_refused_in_a_sentence(headers, payload):
    streamed = headers | {"cn__channel": "sm__STREAM", "cn__topic": "sm__DATA"}
    why = Streams().refusal(streamed, payload)
    assert why is None or (isinstance(why, str) and why)


@settings(max_examples=30, deadline=None)
@given(me=st.sampled_from(CELLS), peer=st.sampled_from(CELLS) | st.text(max_size=20), headers=HEADERS, payload=PAYLOADS)
@example("server", "site-2", {"cn__origin": "site-2", "cn__destination": "server", "cn__topic": {}}, None)
def test_the_guard_itself_raises_nothing(me, peer, headers, payload):
    class Named:
        def __init__(self, name):
            self.name = self.fqcn = name

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CoreCell, "process_message", lambda *_: None)
        patch.setattr(guard, "_STREAMS", Streams())
        patch.setattr(guard, "_TELLER", guard._Teller())  # which tells the first of every peer: also that must hold
        install_guard()
        cell = object.__new__(CoreCell)
        cell.my_info = Named(me)
        cell.process_message(Named(peer), None, 1, Message(dict(headers), payload))


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    """A job's folder as its submitter signed it, its authority, and the submitter's kit."""
    folder = tmp_path_factory.mktemp("federation")
    (folder / "federation.toml").write_text(
        'name = "demo"\nserver = { host = "localhost", port = 8102, org = "hub" }\n'
        'sites = [{ name = "site-1", org = "a" }]\nusers = [{ name = "lead@a.org", org = "a", role = "lead" }]\n'
    )
    kits = provision(folder)
    app = build_job(tmp_path_factory.mktemp("job"), b"{}", name="run", sites=["site-1"]) / "app"
    startup = kits["lead@a.org"] / "startup"
    sign_folders(str(app), load_private_key_file(str(startup / "client.key")), str(startup / "client.crt"))
    return app, kits["site-1"] / "startup" / "rootCA.pem"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["format", "name", "sites", "nonce", "created", "medveil", "files"]
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=15, deadline=None, suppress_health_check=QUIET)
@given(changes=st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=3), gone=st.sampled_from(FIELDS))
def test_no_other_manifest_is_read(signed, tmp_path_factory, changes, gone):
    app = shutil.copytree(signed[0], tmp_path_factory.mktemp("manifest") / "app")
    content = json.loads((app / MANIFEST_FILE).read_text())
    for changed in ({**content, **changes}, {key: value for key, value in content.items() if key != gone}, changes):
        (app / MANIFEST_FILE).write_text(json.dumps(changed))
        try:
            manifest = read_manifest(app, ["site-1"])
        except AuthenticityError:
            continue
        assert (manifest.files, "site-1" in manifest.sites) == (content["files"], True)
        assert {"files", "format"}.isdisjoint(changes) or all(changed[key] == content[key] for key in FIELDS[::6])


@settings(max_examples=10, deadline=None, suppress_health_check=QUIET)
@given(data=st.binary(max_size=60) | st.sampled_from([b"[" * 100_000, b'{"nonce": "' + b"a" * 5000, b"9" * 5000]))
@pytest.mark.parametrize("file", [MANIFEST_FILE, ".__nvfl_sig.json", ".__nvfl_submitter.crt"])
def test_bytes_in_place_of_what_a_submitter_signed_are_a_typed_refusal(signed, tmp_path_factory, file, data):
    app = shutil.copytree(signed[0], tmp_path_factory.mktemp("bytes") / "app")
    assert (app / file).exists()
    (app / file).write_bytes(data)
    with pytest.raises(AuthenticityError):
        (signer(app, signed[1]), read_manifest(app, ["site-1"]))


def packed(entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as files:
        for number, size in enumerate(entries):
            files.writestr(f"{number}", bytes(size))
    return buffer.getvalue()


@settings(max_examples=30, deadline=None)
@given(
    cut=st.integers(0, 400),
    flips=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 255)), max_size=5),
    noise=st.binary(max_size=40),
)
def test_a_damaged_job_archive_is_looked_at_without_an_exception(cut, flips, noise):
    data = bytearray(packed([10, 20, 30]))
    for at, by in flips:
        data[at % len(data)] ^= by
    for one in (bytes(data), bytes(data[:cut]), noise, noise + bytes(data)):
        assert _modest(one) in {True, False}


def test_a_job_archive_that_would_unpack_to_much_is_refused():
    assert _modest(packed([1000]))
    assert not _modest(packed([MOST_UNPACKED // 2 + 1] * 2))
    assert not _modest(packed([1] * (MOST_FILES + 1)))
