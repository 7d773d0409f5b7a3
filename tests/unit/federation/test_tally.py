"""One sum of one vector a site, in the clear and in secret."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medveil.errors import MedveilError, MessageError, ProtocolError, TooFewSitesError
from medveil.federation.messages import Answer, Ask, Join, Sealed, decode, encode, with_frames
from medveil.federation.secure.settings import SecureAggregation
from medveil.federation.secure.sums import sum_parameters
from medveil.federation.tally import TallyServer, TallySite
from medveil.secagg.identity import IdentityKey

NAMES = ["a", "b", "c", "d"]
KEYS = {name: IdentityKey.generate() for name in NAMES}
VECTORS = {name: np.array([at, 2**63 + at, 2**64 - 1], np.uint64) for at, name in enumerate(NAMES, start=1)}


def parties(*, secure, absent=(), origin="o", origins=None, accept=lambda _n, _s: None):
    parameters = None
    if secure:
        public = {name: key.public for name, key in KEYS.items()}
        parameters = sum_parameters(public, SecureAggregation(dropouts=1), "context")
    here = [name for name in NAMES if name not in absent]
    server = TallyServer("evaluation", here, absent, length=3, origin=origin, parameters=parameters)
    sites = {
        name: TallySite(
            "evaluation",
            VECTORS[name],
            origin=(origins or {}).get(name, origin),
            name=name,
            parameters=parameters,
            identity=KEYS[name],
            accept=lambda names, name=name: accept(name, names),
        )
        for name in here
    }
    return server, sites


def exchange(server, sites, *, gone=(), at=10**9, seen=None):
    queue = [(name, data) for name, site in sites.items() for data in site.begin()]
    dead, count = set(), 0
    while queue or not server.done:
        count += 1
        if count == at:
            dead |= set(gone)
            out = [sent for name in gone for sent in server.lose(name, "gone")]
        elif queue:
            name, data = queue.pop(0)
            if name in dead:
                continue
            if seen is not None:
                seen.append(data)
            out = server.receive(name, data)
        else:
            raise AssertionError("the sum stands still")
        for sent in out:
            if sent.site not in dead:
                _, tensors = decode(sent.data)
                queue += [(sent.site, answer) for answer in sites[sent.site].receive(tensors)]
    return count


def total_of(names):
    return np.sum([VECTORS[name] for name in names], axis=0, dtype=np.uint64)


@pytest.mark.parametrize("secure", [False, True])
def test_the_sum_is_of_all_and_modulo_the_word(secure):
    seen, accepted = [], []
    server, sites = parties(secure=secure, accept=lambda name, names: accepted.append((name, tuple(names))))
    assert [(out.site, type(decode(out.data)[0])) for out in server.ask({})] == [(name, Ask) for name in NAMES]
    exchange(server, sites, seen=seen)
    np.testing.assert_array_equal(server.total, total_of(NAMES))
    assert server.included == tuple(NAMES)
    if secure:
        assert server.vectors == {}
        assert all(vector.tobytes() not in b"".join(seen) for vector in VECTORS.values())
        assert sorted(accepted) == [(name, tuple(NAMES)) for name in NAMES]
    else:
        assert server.vectors.keys() == set(NAMES)
        assert all(vector.tobytes() in b"".join(seen) for vector in VECTORS.values()), "the test sees nothing"


@pytest.mark.parametrize("secure", [False, True])
def test_whoever_is_lost_at_any_message_is_left_out_or_was_counted(secure):
    server, sites = parties(secure=secure)
    count = exchange(server, sites)
    outcomes = set()
    for at in range(1, count):
        server, sites = parties(secure=secure)
        exchange(server, sites, gone=["b"], at=at)
        outcomes.add(server.included)
        np.testing.assert_array_equal(server.total, total_of(server.included))
    # In the clear what came of a site that is lost is left out; a masked vector that came counts.
    assert outcomes == {("a", "c", "d")} | ({tuple(NAMES)} if secure else set())


def test_an_absent_site_is_left_out_and_two_are_too_many():
    server, sites = parties(secure=True, absent=("d",))
    assert not server.can_spare("a")
    exchange(server, sites)
    np.testing.assert_array_equal(server.total, total_of("abc"))
    server, sites = parties(secure=True)
    assert server.can_spare("a")
    server.lose("a", "gone")
    assert not server.can_spare("b")
    server.lose("b", "gone")
    server.receive("c", sites["c"].begin()[0])
    with pytest.raises(TooFewSitesError):
        server.receive("d", sites["d"].begin()[0])


def test_vectors_of_different_weights_are_never_added_up():
    server, sites = parties(secure=True, origins={"c": "another model"})
    with pytest.raises(MedveilError):
        exchange(server, sites)
    assert server.total is None


def test_nobody_is_left_in_the_clear():
    server, _ = parties(secure=False)
    for name in "abc":
        assert server.can_spare(name)
        server.lose(name, "gone")
    assert not server.can_spare("d")
    with pytest.raises(TooFewSitesError):
        server.lose("d", "gone")


@pytest.mark.parametrize(
    "vector", [None, np.zeros(2, np.uint64), np.zeros(3, np.float64), np.zeros(4, np.uint64), np.zeros(3, np.uint32)]
)
def test_a_vector_of_another_length_or_kind_is_refused(vector):
    server, _ = parties(secure=False)
    with pytest.raises(MessageError):
        server.receive("a", encode(Answer(purpose="evaluation"), {} if vector is None else {"vector": vector}))
    assert server.awaited == tuple(NAMES)


def test_other_messages_than_are_due_are_refused():
    server, _ = parties(secure=False)
    answer = encode(Answer(purpose="evaluation"), {"vector": VECTORS["a"]})
    server.receive("a", answer)
    for name, data in (
        ("a", answer),
        ("b", encode(Answer(purpose="threshold"), {"vector": VECTORS["a"]})),
        ("b", encode(Join(site="b", plan_hash="x", num_examples=None))),
        ("e", answer),
    ):
        with pytest.raises(ProtocolError):
            server.receive(name, data)
    secret, sites = parties(secure=True)
    with pytest.raises(ProtocolError, match="in the clear"):
        secret.receive("a", answer)
    with pytest.raises(ProtocolError, match="asks for none"):
        parties(secure=False)[1]["a"].receive({})
    assert decode(sites["a"].begin()[0])[0] == Sealed()


def test_a_header_that_announces_a_huge_body_is_refused_at_once():
    server, _ = parties(secure=False)
    data = bytearray(encode(Answer(purpose="evaluation"), {"vector": VECTORS["a"]}))
    data[10:18] = (1 << 31).to_bytes(8, "big")
    with pytest.raises(MessageError, match="larger than allowed"):
        server.receive("a", bytes(data))


@settings(max_examples=60, deadline=None)
@given(
    frame=st.binary(min_size=1, max_size=120),
    flips=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 255)), max_size=5),
    secure=st.booleans(),
)
def test_no_bytes_raise_anything_but_an_error_of_medveil(frame, flips, secure):
    server, sites = parties(secure=secure)
    honest = sites["a"].begin()[0]
    data = bytearray(honest)
    forged = encode(Sealed(), with_frames([frame]))
    for at, by in flips:
        data[at % len(data)] ^= by
    with pytest.raises(MedveilError):
        server.receive("a", forged)
    try:
        server.receive("a", bytes(data))
    except MedveilError:
        assert bytes(data) != honest
        assert "a" not in server.vectors
    else:
        assert secure or "a" in server.vectors
    assert server.total is None
