"""What one more unit can change after rounding, in exact arithmetic."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medveil.dp.noise import NoiseMechanism, rounded_gaussian
from medveil.rng import SecureRandom, Seeds

_VALUES = st.floats(-1e6, 1e6)


@given(
    total=arrays.arrays(np.float64, 5, elements=_VALUES),
    unit=arrays.arrays(np.float64, 5, elements=st.floats(-1, 1)),
    norm=st.floats(1e-3, 1e3),
)
def test_rounding_adds_at_most_the_root_of_the_dimension(total, unit, norm):
    """Triangle inequality in the exact rationals that the float64 numbers are."""
    mechanism = NoiseMechanism(norm, 1.0, 5)
    neighbour = total + unit
    moved = mechanism._rounded(neighbour) - mechanism._rounded(total)
    grid = Fraction(mechanism.grid)
    true = sum((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(neighbour.tolist(), total.tolist(), strict=True))
    # Half a cell each side, and float64's last digit of numbers below 2**30 cells.
    allowed = (float(true) ** 0.5) / float(grid) + 5**0.5 * (1 + 2.0**-20)
    assert sum(step * step for step in moved.tolist()) ** 0.5 <= allowed * (1 + 1e-12)


@given(norm=st.floats(1e-30, 1e30), values=arrays.arrays(np.int64, 4, elements=st.integers(-(2**53), 2**53)))
def test_decoding_is_exact_on_the_grid(norm, values):
    mechanism = NoiseMechanism(norm, 1.0, 4)
    assert Fraction(mechanism.grid) * 2**20 == Fraction(norm)
    for decoded, value in zip(mechanism.decode(values).tolist(), values.tolist(), strict=True):
        assert (
            abs(Fraction(decoded) - value * Fraction(mechanism.grid)) <= abs(value) * Fraction(mechanism.grid) / 2**53
        )


@given(std=st.floats(1, 2.0**32), seed=st.integers(0, 2**20), count=st.integers(0, 20))
def test_noise_scales_with_its_size(std, seed, count):
    """The same words at another size: the same quantiles, each rounded by at most one half."""
    one = rounded_gaussian(std, count, SecureRandom.seeded(Seeds(seed)))
    other = rounded_gaussian(2.0**30, count, SecureRandom.seeded(Seeds(seed)))
    assert one.shape == (count,)
    np.testing.assert_allclose(one, other * (std / 2.0**30), atol=0.5 + std * 2.0**-30)
