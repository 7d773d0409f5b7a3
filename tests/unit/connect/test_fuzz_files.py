"""Files that people edit, with anything in them: read as valid, or refused with an error that says what to do."""

import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from medveil.connect.home import Home
from medveil.connect.kit import read_kit
from medveil.connect.policy import TEMPLATE, load_policy
from medveil.connect.server_settings import ServerConfig, read_server_settings
from medveil.errors import ConfigError

SITE = b'deidentified = true\nmax_message_mb = 64\n[source]\nkind = "share"\npath = "/data/share.npz"\n'
DEEP = b"a = " + b"[" * 20_000
DIGITS = b"a = " + b"9" * 6_000
FLIPS = st.lists(st.tuples(st.integers(0, 1 << 14), st.integers(1, 255)), min_size=1, max_size=4)
QUIET = [HealthCheck.function_scoped_fixture]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def flipped(data, flips):
    data = bytearray(data)
    for at, by in flips:
        data[at % len(data)] ^= by
    return bytes(data)


def settled(read, *arguments):
    """What is read, or None where it is refused as it should be."""
    try:
        return read(*arguments)
    except ConfigError as error:
        refusal = error
    assert refusal.what
    assert len(str(refusal)) < 2000
    return None


def test_the_files_are_read_as_they_are(tmp_path):
    (tmp_path / "medveil").mkdir()
    (tmp_path / "medveil" / "site.toml").write_bytes(SITE)
    assert Home(tmp_path).site().max_message_mb == 64
    assert load_policy(TEMPLATE).max_rounds >= 0


@settings(max_examples=25, deadline=None, suppress_health_check=QUIET)
@given(data=st.builds(flipped, st.just(SITE), FLIPS) | st.binary(max_size=60))
@example(DEEP)
@example(DIGITS)
def test_a_site_file_with_anything_in_it(tmp_path, data):
    (tmp_path / "medveil").mkdir(exist_ok=True)
    (tmp_path / "medveil" / "site.toml").write_bytes(data)
    settled(Home(tmp_path).site)


@settings(max_examples=25, deadline=None, suppress_health_check=QUIET)
@given(data=st.builds(flipped, st.just(TEMPLATE.read_bytes()), FLIPS) | st.binary(max_size=60))
@example(DEEP)
@example(DIGITS)
def test_a_policy_with_anything_in_it(tmp_path, data):
    (tmp_path / "policy.toml").write_bytes(data)
    settled(load_policy, tmp_path / "policy.toml")


@settings(max_examples=25, deadline=None, suppress_health_check=QUIET)
@given(
    data=(st.dictionaries(st.sampled_from([*ServerConfig.model_fields]), JSON) | JSON).map(json.dumps).map(str.encode)
    | st.binary(max_size=60)
)
@example(b"[" * 100_000)
@example(b'{"answer_s": ' + b"9" * 6_000 + b"}")
def test_server_settings_with_anything_in_them(tmp_path, data):
    (tmp_path / "server.json").write_bytes(data)
    found = settled(read_server_settings, tmp_path / "server.json")
    if found is not None:
        assert found.patience().dead_after_s >= 1
        assert 0 < found.links().max_message_bytes <= 1 << 32


@settings(max_examples=25, deadline=None, suppress_health_check=QUIET)
@given(
    data=st.fixed_dictionaries({}, optional={"sites": st.dictionaries(st.text(max_size=8), JSON) | JSON, "x": JSON})
    .map(json.dumps)
    .map(str.encode)
    | st.binary(max_size=60)
)
@example(b'{"sites": {"site-1": ' + b"9" * 6_000 + b"}}")
@example(b"[" * 100_000)
def test_a_roster_with_anything_in_it(tmp_path, data):
    (tmp_path / "medveil").mkdir(exist_ok=True)
    (tmp_path / "medveil" / "roster.json").write_bytes(data)
    found = settled(Home(tmp_path).roster)
    assert found is None or all(isinstance(key, bytes) for key in found.values())


@settings(max_examples=25, deadline=None, suppress_health_check=QUIET)
@given(
    data=st.fixed_dictionaries({}, optional={"servers": JSON, "admin": JSON, "format_version": JSON})
    .map(json.dumps)
    .map(str.encode)
    | st.binary(max_size=60)
)
@example(b"[" * 100_000)
@pytest.mark.parametrize(
    ("kind", "file"), [("server", "fed_server.json"), ("site", "fed_client.json"), ("person", "fed_admin.json")]
)
def test_a_kit_with_anything_in_its_settings_is_damaged(tmp_path, kind, file, data):
    (tmp_path / "startup").mkdir(exist_ok=True)
    (tmp_path / "startup" / file).write_bytes(data)
    with pytest.raises(ConfigError, match="damaged"):
        read_kit(tmp_path, kind)
