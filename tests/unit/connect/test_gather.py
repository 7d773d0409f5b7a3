"""One message of one kind from every site."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medveil.connect.gather import Gather
from medveil.errors import MedveilError, MessageError, ProtocolError, TooFewSitesError
from medveil.federation.messages import Join, Sealed, Settled, encode

TOLD = encode(Settled(steps=2, ledger=None, protocol_seconds=0.5))


def test_it_ends_with_the_last_site():
    gather = Gather(Settled, ["b", "a"], least=1)
    assert gather.awaited == ("a", "b")
    assert gather.receive("a", TOLD) == []
    assert not gather.done
    gather.receive("b", TOLD)
    assert gather.done
    assert {name: told.steps for name, told in gather.gathered.items()} == {"a": 2, "b": 2}


def test_a_second_answer_another_kind_and_strangers_are_refused():
    gather = Gather(Settled, ["a", "b"], least=1)
    gather.receive("a", TOLD)
    for name, data in (("a", TOLD), ("c", TOLD), ("b", encode(Join(site="b", plan_hash="x", num_examples=1)))):
        with pytest.raises(ProtocolError):
            gather.receive(name, data)
    assert gather.receive("b", encode(Sealed())) == []  # left over of a sum
    assert gather.awaited == ("b",)
    with pytest.raises(MessageError):
        gather.receive("b", b"nothing")


def test_what_the_check_refuses_is_not_kept():
    def check(site, _message):
        raise ProtocolError(site)

    gather = Gather(Settled, ["a"], least=1, check=check)
    with pytest.raises(ProtocolError):
        gather.receive("a", TOLD)
    assert gather.gathered == {}


def test_it_goes_on_without_a_site_while_enough_are_left():
    gather = Gather(Settled, ["a", "b", "c"], least=2)
    gather.receive("a", TOLD)
    assert gather.can_spare("a")
    gather.lose("a", "gone")
    assert gather.gathered == {}
    assert gather.lost == {"a": "gone"}
    assert not gather.can_spare("b")
    assert gather.can_spare("a")
    with pytest.raises(TooFewSitesError, match=r"a: gone; b: broken"):
        gather.lose("b", "broken")


@settings(max_examples=60, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 255)), min_size=1, max_size=5))
def test_no_bytes_raise_anything_but_an_error_of_medveil(flips):
    gather = Gather(Settled, ["a"], least=1)
    data = bytearray(TOLD)
    for at, by in flips:
        data[at % len(data)] ^= by
    try:
        gather.receive("a", bytes(data))
    except MedveilError:
        assert gather.gathered == {}
    else:
        assert gather.gathered.keys() == {"a"}


def test_a_huge_body_is_refused_by_its_header():
    data = bytearray(TOLD)
    data[10:18] = (1 << 40).to_bytes(8, "big")
    with pytest.raises(MessageError, match="larger than allowed"):
        Gather(Settled, ["a"], least=1).receive("a", bytes(data))
