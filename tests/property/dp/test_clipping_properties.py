"""One unit moves the sum by at most the bound, in exact arithmetic, whatever its gradient holds."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from medveil.dp import clipping as module
from medveil.dp.clipping import AdaptiveClipping, AutoClipping, FlatClipping, PerLayerClipping, clip_and_sum

_ANY = st.floats(width=32)
_FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
_NORMS = st.floats(1e-30, 1e30)
_TINY = 1.401298464324817e-45
_HUGE = 3.4028234663852886e38


@st.composite
def _clippings(draw):
    norm = draw(_NORMS)
    return draw(
        st.sampled_from(
            [
                FlatClipping(l2_clip_norm=norm),
                AutoClipping(l2_clip_norm=norm, stability=1e-30),
                AutoClipping(l2_clip_norm=norm),
                PerLayerClipping(l2_clip_norm=norm),
                PerLayerClipping(l2_clip_norm=norm, split="dimension"),
                AdaptiveClipping(l2_clip_norm=norm, count_noise_multiplier=5.0),
            ]
        )
    )


def _gradients(units, *, apart=False):
    """Tensors of shapes (3,), () and (1, 2) for rows of six numbers: side by side in memory, or each on its own."""
    rows = torch.tensor(units, dtype=torch.float32).reshape(-1, 6)
    parts = [rows[:, :3], rows[:, 3], rows[:, 4:].reshape(-1, 1, 2)]
    return [part.clone() for part in parts] if apart else parts


def _summed(clipping, units, *, apart=False, together=2**10):
    """The sum, ``together`` units at a time."""
    total = torch.zeros(6, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_VALUES", 6 * together)
        counts = clip_and_sum(clipping, _gradients(units, apart=apart), total)
    return total, counts


def _square(numbers):
    return sum(Fraction(number) ** 2 for number in numbers)


@given(clipping=_clippings(), unit=st.lists(_ANY, min_size=6, max_size=6))
@example(FlatClipping(l2_clip_norm=1.0), [_HUGE] * 6)
@example(FlatClipping(l2_clip_norm=1e-30), [_TINY] * 6)
@example(AutoClipping(l2_clip_norm=1e30, stability=1e-30), [_TINY, 0.0, 0.0, 0.0, 0.0, 0.0])
@example(PerLayerClipping(l2_clip_norm=1.0), [math.nan, 0.0, 1.0, math.inf, -math.inf, 1.0])
@example(FlatClipping(l2_clip_norm=1.0), [0.0] * 6)
def test_one_unit_is_within_the_bound(clipping, unit):
    total, counts = _summed(clipping, [unit])
    assert _square(total.tolist()) <= Fraction(clipping.l2_clip_norm) ** 2
    assert counts.units == 1
    assert counts.non_finite == (not all(map(math.isfinite, unit)))
    if counts.non_finite or not any(unit):
        assert total.tolist() == [0.0] * 6


@given(
    clipping=_clippings(),
    others=st.lists(st.lists(_ANY, min_size=6, max_size=6), max_size=6),
    unit=st.lists(_FINITE, min_size=6, max_size=6),
    place=st.integers(0, 6),
    together=st.integers(1, 7),
)
def test_adding_one_unit_moves_the_sum_within_the_bound(clipping, others, unit, place, together):
    without, _ = _summed(clipping, others, together=together)
    joined, counts = _summed(clipping, [*others[:place], unit, *others[place:]], together=together)
    moved = [Fraction(a) - Fraction(b) for a, b in zip(joined.tolist(), without.tolist(), strict=True)]
    assert _square(moved) <= Fraction(clipping.l2_clip_norm) ** 2
    assert counts.units == len(others) + 1


@given(clipping=_clippings(), units=st.lists(st.lists(_ANY, min_size=6, max_size=6), max_size=8), cut=st.integers(0, 8))
def test_chunks_add_up(clipping, units, cut):
    whole, counts = _summed(clipping, units)
    total = torch.zeros(6, dtype=torch.float64)
    first = clip_and_sum(clipping, _gradients(units[:cut]), total)
    second = clip_and_sum(clipping, _gradients(units[cut:]), total)
    assert first + second == counts
    assert 0 <= counts.unclipped <= counts.units
    np.testing.assert_allclose(total, whole, rtol=0, atol=1e-14 * clipping.l2_clip_norm * max(len(units), 1))


@given(
    clipping=_clippings(), units=st.lists(st.lists(_ANY, min_size=6, max_size=6), max_size=8), size=st.integers(1, 8)
)
def test_neither_memory_nor_blocks_change_what_is_summed(clipping, units, size):
    whole, counts = _summed(clipping, units)
    apart, same = _summed(clipping, units, apart=True)
    np.testing.assert_array_equal(apart, whole)
    blocks, equal = _summed(clipping, units, together=size)
    np.testing.assert_allclose(blocks, whole, rtol=0, atol=1e-14 * clipping.l2_clip_norm * max(len(units), 1))
    assert counts == same == equal


def _violations(margin, monkeypatch):
    """How many of 300 units of plain numbers end up beyond the bound, in exact arithmetic."""
    monkeypatch.setattr(module, "MARGIN", margin)
    generator, found = np.random.default_rng(0), 0
    for _ in range(300):
        norm = float(generator.uniform(0.5, 2))
        total, _ = _summed(FlatClipping(l2_clip_norm=norm), [generator.normal(size=6).astype(np.float32).tolist()])
        found += _square(total.tolist()) > Fraction(norm) ** 2
    return found


def test_without_the_margin_rounding_breaks_the_bound(monkeypatch):
    """The tests above can fail: aimed exactly at the bound, rounding oversteps it."""
    assert _violations(1.0, monkeypatch) > 10
    assert _violations(1.0 - 2.0**-12, monkeypatch) == 0
