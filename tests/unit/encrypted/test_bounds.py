"""Ranges and errors against brute force, and the scales that follow from them."""

import itertools
import math

import pytest
import torch
from torch import nn

from medveil.encrypted import program as ops
from medveil.encrypted.compiler import bounds
from medveil.encrypted.compiler.bounds import Range
from medveil.encrypted.compiler.fronts import feature_range
from medveil.encrypted.compiler.graph import Affine
from medveil.encrypted.compiler.main import compile as compile_network
from medveil.models.filterbank import FilterbankConfig, FilterbankFront
from medveil.models.scattering import ScatteringConfig, ScatteringFront


def _known(low, high, error=0.0, norm=math.inf):
    low, high = (torch.as_tensor(each, dtype=torch.float64) for each in (low, high))
    spread = torch.full_like(low, error)
    ends = torch.stack([low, high])
    return Range(low, high, spread, ends, ends, norm)


def _mean_square(known):
    return (known.trials - known.probes).square().mean().item()


def _convolution(padding=0):
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn((2, 1, 2, 2), generator=generator, dtype=torch.float64)
    bias = torch.randn(2, generator=generator, dtype=torch.float64)
    return Affine("conv2d", weight, bias, (1, 1), (padding,) * 2, (1, 1), (0, 0), 1)


@pytest.mark.parametrize("padding", [0, 1])
def test_the_range_of_a_convolution_is_attained_and_never_left(padding):
    layer = _convolution(padding)
    low, high = torch.tensor([[[-1.0, 0.5], [0.2, -3.0]]]), torch.tensor([[[2.0, 0.6], [0.9, -1.0]]])
    found = bounds.linear(_known(low, high), layer, layer.weight, layer.bias)
    corners = [
        torch.where(torch.tensor(chosen).reshape(1, 2, 2), high, low).double()
        for chosen in itertools.product([False, True], repeat=4)
    ]
    answers = layer.apply(torch.stack(corners), layer.weight) + layer.bias.reshape(-1, 1, 1)
    torch.testing.assert_close(found.low, answers.amin(0), rtol=0, atol=1e-7)
    torch.testing.assert_close(found.high, answers.amax(0), rtol=0, atol=1e-7)
    assert bool((found.low <= answers.amin(0)).all())
    assert bool((found.high >= answers.amax(0)).all())


def test_the_certified_error_is_attained():
    """The worst image, at the worst distance, with weights that were rounded away from the true ones."""
    layer = _convolution()
    shown = (layer.weight * 4).round() / 4
    value = _known(torch.zeros(1, 2, 2), torch.ones(1, 2, 2), error=0.01)
    found = bounds.linear(value, layer, shown, layer.bias)
    worst = torch.zeros(2)
    for image in itertools.product([0.0, 1.0], repeat=4):
        for signs in itertools.product([-0.01, 0.01], repeat=4):
            held = torch.tensor(image, dtype=torch.float64).reshape(1, 1, 2, 2)
            true = held + torch.tensor(signs, dtype=torch.float64).reshape(1, 1, 2, 2)
            off = layer.apply(held, shown) - layer.apply(true, layer.weight)
            worst = torch.maximum(worst, off.abs().flatten())
    assert bool((worst <= found.error.flatten() + 1e-12).all())
    # Signs of weights and of their roundings need not agree: the bound adds both up.
    assert bool((worst >= 0.4 * found.error.flatten()).all())


def test_a_small_norm_sharpens_the_range():
    weight = torch.full((1, 100), 0.1, dtype=torch.float64)
    layer = Affine("linear", weight, torch.tensor([5.0], dtype=torch.float64))
    box = _known(-torch.ones(100), torch.ones(100))
    assert bounds.linear(box, layer, weight, layer.bias).high.item() == pytest.approx(15.0)
    ball = _known(-torch.ones(100), torch.ones(100), norm=2.0)
    found = bounds.linear(ball, layer, weight, layer.bias)
    assert (found.low.item(), found.high.item()) == (pytest.approx(3.0), pytest.approx(7.0))


def _signed(values, bits):
    return (values + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)


def test_the_error_of_narrowing_is_attained_by_shares_and_never_exceeded():
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(-(2**40), 2**40, (50_000,), generator=generator)
    masks = torch.randint(0, 2**48, values.shape, generator=generator)
    found = _signed((masks + 2**12 - 1 >> 12) + ((values - masks) % 2**48 >> 12), 32)
    exact = values.double() / 2**32
    known = bounds.dropped(_known(exact, exact), 12, 20)
    off = found.double() / 2**20 - exact
    assert bool((found.double() / 2**20 >= known.low).all())
    assert bool((found.double() / 2**20 <= known.high).all())
    assert 0.9 * known.error.max() < off.abs().max() <= known.error.max()
    assert off.square().mean().item() == pytest.approx(_mean_square(known), rel=0.05)
    deviation = off.square().mean().sqrt().item() / math.sqrt(len(off))
    assert abs(off.mean().item()) < 5 * deviation
    assert abs(off.mean().item() - 2.0**-20) > 5 * deviation  # what both rounding down would give


def test_the_error_of_rescaling_is_attained_by_masks_and_never_exceeded():
    generator = torch.Generator().manual_seed(1)
    values = torch.randint(-(2**29), 2**29, (50_000,), generator=generator)
    masks = torch.randint(0, 2**32, values.shape, generator=generator)
    # By the rule of the protocol: z and rho lose their last bits each on their own; rho's highest bit tells a wrap.
    moved = (values + masks + 2**30) % 2**32
    wrapped = (moved < 2**31) * 2**28 * (masks >> 31)
    found = (moved >> 4) - 2**26 - (masks >> 4) + wrapped
    exact = values.double() / 2**20
    known = bounds.dropped(_known(exact, exact), 4, 16)
    off = found.double() / 2**16 - exact
    assert 0.9 * known.error.max() < off.abs().max() <= known.error.max()
    assert off.square().mean().item() == pytest.approx(_mean_square(known), rel=0.05)
    exactly = bounds.dropped(_known(exact, exact), 0, 20)
    assert exactly.error.max() == _mean_square(exactly) == 0


def test_narrow_values_carry_as_many_bits_as_their_range_allows():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    for gain, kept in ((1.0, 20), (1000.0, 20), (1100.0, 19), (2100.0, 18), (8100.0, 17), (16_000.0, 16)):
        with torch.no_grad():
            net[0].weight.fill_(gain)
            net[0].bias.fill_(0.0)
        compiled = compile_network(net, (1, 2, 2), (0.0, 1.0), activation_limit=2**20)
        (narrow,) = (each for each in compiled.program.operations if isinstance(each, ops.Narrow))
        assert narrow.scale == kept, gain
        assert narrow.bound * 2**narrow.scale < ops.NARROW_LIMIT


def test_limits_stand_where_the_range_is_exceeded_and_nowhere_else():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2), nn.ReLU())
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([-9.0, 4.0]).reshape(2, 1, 1, 1))
        net[0].bias.zero_()
        net[3].weight.fill_(0.1)
        net[3].bias.zero_()
    found = {}
    for limit in (3.0, 5.0):
        program = compile_network(net, (1, 2, 2), (0.0, 1.0), activation_limit=limit).program
        found[limit] = [each for each in program.operations if isinstance(each, ops.Relu)]
    scale = 20
    assert [each.limit for each in found[3.0]] == [3 * 2**scale, None]
    assert found[3.0][0].bound == pytest.approx(3.0, abs=1e-4)
    # What is far below zero needs no limit; four values of 3 or 4 at most, times 0.1.
    assert [each.limit for each in found[5.0]] == [None, None]
    assert found[5.0][1].bound == pytest.approx(1.6, abs=1e-3)


def _hard_images(shape):
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((3, *shape), generator=generator)
    steps = (torch.arange(shape[-1]) > shape[-1] // 2).float().expand(shape)
    return torch.cat([noise, noise.round(), steps[None], steps[None].flip(-1), torch.ones((1, *shape))])


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 5.0)])
@pytest.mark.parametrize(
    "front",
    [
        ScatteringFront(ScatteringConfig(), (1, 28, 28)),
        ScatteringFront(ScatteringConfig(group=9), (1, 28, 28)),
        FilterbankFront(FilterbankConfig(), (2, 32, 24)),
    ],
)
def test_fixed_features_stay_in_their_range(front, low, high):
    shape = (2, 32, 24) if isinstance(front, FilterbankFront) else (1, 28, 28)
    lows, highs, norm = feature_range(front, shape, low, high)
    features = front(low + (high - low) * _hard_images(shape)).double()
    assert features.shape[1:] == lows.shape == highs.shape
    assert bool((features >= lows).all())
    assert bool((features <= highs).all())
    assert bool((features.flatten(1).norm(dim=1) <= norm).all())
    if isinstance(front, ScatteringFront):
        assert features.flatten(1).norm(dim=1).max() > 0.99 * norm
