"""Every comparison has numbers of its own: no mask, table or product for two elements, thresholds or images."""

import io

import numpy as np
import pytest

from medveil.encrypted.program import Decide
from medveil.encrypted.protocol.activation import Party, signs
from medveil.encrypted.protocol.correlations import Dealt, Decision, Signs, deal_decision, deal_signs
from medveil.encrypted.protocol.reveal import decide
from medveil.encrypted.protocol.ring import Stream

PIXELS = 4096
IMAGES = THRESHOLDS = 2
SIZE = IMAGES * THRESHOLDS * PIXELS
# Fixed: of so many words of 32 bits two are the same by chance once in thirty seeds.
SEEDS = bytes(range(32)), bytes(range(1, 33))
KINDS = ["decision", "signs", "signs with a limit"]


class Repeating(Stream):
    """A mutant: the second half of rho is its first half again."""

    def narrow(self, count):
        found = super().narrow(count)
        return np.concatenate([found[: count // 2]] * 2) if count == SIZE else found


def dealt(kind, stream):
    """Both parties' parts."""
    streams, own = ([stream(seed, "x") for seed in SEEDS] for _ in range(2))
    if kind == "decision":
        parts = deal_decision(*streams, SIZE)
        take = Decision.take
    else:
        parts, _, _ = deal_signs(*streams, SIZE, limited="limit" in kind)
        take = lambda own, source, count: Signs.take(own, source, count, limited="limit" in kind)  # noqa: E731
    read = io.BytesIO(b"".join(parts))
    found = take(own[0], own[0], SIZE), take(own[1], Dealt(read.read), SIZE)
    assert not read.read(1)
    return found


def chi_square(words):
    counts = np.bincount(np.ascontiguousarray(words).view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    return float(((counts - expected) ** 2 / expected).sum())


def check_fresh(parts):
    """No word twice within a party's part, and parts of rho that differ by uniform numbers."""
    rho = parts[0].mask + parts[1].mask
    assert len(np.unique(rho)) == SIZE
    for shape in ((IMAGES, -1), (IMAGES * THRESHOLDS, -1)):
        each = rho.reshape(shape)
        assert chi_square(each[0] - each[1]) < 400  # 255 + 6 standard deviations
    for content in (*(part.tables.content for part in parts), parts[0].tables.content ^ parts[1].tables.content):
        assert len(np.unique(content, axis=1).T) == SIZE
    for part in parts:  # of each party alone: a product of many masks is mostly zero, so its halves are alike
        trees = [tree for tree in (part.tree, getattr(part, "over", None)) if tree is not None]
        packed = [word for tree in trees for word in (*tree.masks.values(), *tree.products.values())]
        words = np.concatenate([*packed, part.top, *([part.coin] if hasattr(part, "coin") else [])])
        assert len(np.unique(words)) == words.size
        assert chi_square(words) < 400


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_dealt_twice(kind):
    check_fresh(dealt(kind, Stream))


@pytest.mark.parametrize("kind", KINDS)
def test_a_dealer_that_deals_rho_twice_is_noticed(kind):
    with pytest.raises(AssertionError):
        check_fresh(dealt(kind, Repeating))


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("stream", [Stream, Repeating])
def test_equal_numbers_and_thresholds_are_opened_as_uniform_differences(run_both, kind, stream):
    """Two images of the same number, compared with the same threshold twice."""
    ours, theirs = dealt(kind, stream)
    if kind == "decision":
        operation = Decide("d", ("v",), (THRESHOLDS, PIXELS), 0, False, 1.0, (1000,) * THRESHOLDS)
        value = np.full((IMAGES, PIXELS), 1234, np.uint32)
        act = lambda link, half, part, first: decide(Party(link, first=first), operation, [half], part)  # noqa: E731
    else:
        value = np.full(SIZE, 1234, np.uint32)
        act = lambda link, half, part, first: signs(Party(link, first=first), half, part, None)  # noqa: E731
    half = np.full_like(value, 77)
    _, _, ends = run_both(
        lambda link: act(link, half, ours, True),
        lambda link: act(link, value - half, theirs, False),
    )
    sent = [np.frombuffer(next(data for data in end.sent if len(data) == 4 * SIZE), "<u4") for end in ends]
    differences = [sent[0] + sent[1], *sent]
    uniform = [
        chi_square(each[0] - each[1]) < 400
        for z in differences
        for each in (z.reshape(IMAGES, -1), z.reshape(IMAGES * THRESHOLDS, -1))
    ]
    assert all(uniform) == (stream is Stream)
