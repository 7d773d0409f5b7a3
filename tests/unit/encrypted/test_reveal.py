"""Labels, rounded probabilities and masks alone: against arg-max and rounding of the network's logits in NumPy."""

import io
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medveil.encrypted.compiler.decision import cuts, thresholds
from medveil.encrypted.compiler.main import compile as compile_network
from medveil.encrypted.program import Decide, Linear
from medveil.encrypted.protocol.activation import Party
from medveil.encrypted.protocol.correlations import Dealt, Decision, deal_decision
from medveil.encrypted.protocol.deal import (
    deal,
    masked_weights,
    prepare_hospital,
    prepare_vendor,
    read_masked_weights,
    weight_masks,
)
from medveil.encrypted.protocol.evaluate import hospital, vendor
from medveil.encrypted.protocol.reveal import decide, reveal
from medveil.encrypted.protocol.ring import Stream, unpack
from medveil.encrypted.serial import from_json, public, to_json
from medveil.errors import ConfigError, ImageError, UnsupportedLayer

RANGE = (-2.0, 2.0)


def diagnosed(compiled, images, run_both):
    """What is revealed, and both ends of the link."""
    program, seed = compiled.program, os.urandom(32)
    ours, theirs = os.urandom(32), os.urandom(32)
    masked = read_masked_weights(program, masked_weights(program, compiled.weights, seed))
    dealt = b"".join(deal(program, weight_masks(program, seed), hospital=ours, vendor=theirs, images=len(images)))
    reader = io.BytesIO(dealt)
    halves = (
        prepare_hospital(program, masked, ours, len(images)),
        prepare_vendor(program, theirs, reader.read, len(images)),
    )
    assert not reader.read(1)
    encoded = np.rint(images.double().numpy() * 2.0**16).astype(np.int64)
    found, _, ends = run_both(
        lambda link: hospital(halves[0], link, encoded, os.urandom(32)),
        lambda link: vendor(halves[1], link, compiled.weights),
    )
    return found, ends, dealt


def logits_of(network, images):
    with torch.no_grad():
        return network.double()(images.double()).numpy()


def classifier(classes, seed=0, *, last=True):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * 4, classes)]
    if not last:
        layers.append(nn.ReLU())
    return nn.Sequential(*layers).eval()


def noise(count, shape, seed=1):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed)) * 4 - 2


def probability(logits):
    spread = np.exp(logits - logits.max(1, keepdims=True))
    return spread / spread.sum(1, keepdims=True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("last", [True, False], ids=["layer", "relu"])
@pytest.mark.parametrize("threshold", [None, 0.3, 0.62])
def test_the_label_of_two_classes(run_both, seed, last, threshold):
    network = classifier(2, seed, last=last)
    compiled = compile_network(network, (1, 8, 8), RANGE, reveal="label", threshold=threshold)
    images = noise(50, (1, 8, 8), seed)
    found, _, _ = diagnosed(compiled, images, run_both)
    assert found.shape == (50, 1, 1)
    likely = probability(logits_of(network, images))[:, 1]
    least = 0.5 if threshold is None else threshold
    sure = np.abs(np.log(likely / (1 - likely)) - math.log(least / (1 - least))) > compiled.program.error
    assert sure.mean() > (0.9 if last else 0.4)  # ReLU makes ties
    assert (found[sure, 0, 0] == (likely >= least)[sure]).all()
    # The difference is the last layer's own where there is one: no layer, no message and no number more.
    assert len(compiled.program.linears()) == (2 if last else 3)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_thresholds_that_decide_always_the_same(run_both, threshold):
    compiled = compile_network(classifier(2), (1, 8, 8), RANGE, reveal="label", threshold=threshold)
    found, _, _ = diagnosed(compiled, noise(20, (1, 8, 8)), run_both)
    assert (found == 1 - threshold).all()


@pytest.mark.parametrize("classes", [3, 5, 9])
@pytest.mark.parametrize("seed", range(3))
def test_the_label_of_more_classes(run_both, classes, seed):
    network = classifier(classes, seed)
    compiled = compile_network(network, (1, 8, 8), RANGE, reveal="label")
    images = noise(50, (1, 8, 8), seed)
    found, _, _ = diagnosed(compiled, images, run_both)
    assert found.shape == (50, 1, classes)
    logits = logits_of(network, images)
    assert (found.sum(2) >= 1).all()
    chosen = np.take_along_axis(logits, found[:, 0].argmax(1)[:, None], 1)[:, 0]
    assert (logits.max(1) - chosen <= 2 * compiled.program.error).all()
    ordered = np.sort(logits, 1)
    sure = ordered[:, -1] - ordered[:, -2] > 2 * compiled.program.error
    assert sure.mean() > 0.9
    one_hot = np.eye(classes)[logits.argmax(1)]
    assert (found[sure, 0] == one_hot[sure]).all()


@pytest.mark.parametrize("levels", [2, 20, 100])
@pytest.mark.parametrize("classes", [2, 4])
def test_rounded_probabilities(run_both, classes, levels):
    network = classifier(classes)
    compiled = compile_network(network, (1, 8, 8), RANGE, reveal="probabilities", levels=levels)
    images = noise(40, (1, 8, 8))
    found, _, _ = diagnosed(compiled, images, run_both)
    assert found.shape == (40, 1 + levels, 1 if classes == 2 else classes)
    likely = probability(logits_of(network, images))
    exact = likely[:, 1:] if classes == 2 else likely / likely.max(1, keepdims=True)
    counts, wanted = found[:, 1:].sum(1), np.floor(exact * levels + 0.5)
    # A probability moves by at most a number's error; nearer to the middle between two levels it may go either way.
    middle = np.abs(exact * levels + 0.5 - np.round(exact * levels + 0.5)) / levels
    sure = middle > compiled.program.error
    assert sure.mean() > 0.8
    assert (counts[sure] == wanted[sure]).all()
    assert np.abs(counts - wanted).max() <= 1
    # As on a scale: all levels below the highest one are reached.
    assert (np.diff(found[:, 1:], axis=1) <= 0).all()
    if classes == 2:
        assert (found[:, 0, 0] == (likely[:, 1] >= 0.5)).all()
    else:
        assert (found[:, 0] == np.eye(classes)[likely.argmax(1)]).all()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("count", [1, 3])
def test_a_mask(run_both, classes, count):
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(6, classes, 2, stride=2)
    ).eval()
    compiled = compile_network(network, (2, 9, 7), RANGE, task="segmentation", reveal="label")
    images = noise(count, (2, 9, 7))
    found, _, _ = diagnosed(compiled, images, run_both)
    logits = logits_of(network, images)
    channels = 1 if classes == 2 else classes
    assert found.shape == (count, 1, channels, 18, 14)
    mask = found[:, 0, 0] if classes == 2 else found[:, 0].argmax(1)
    ordered = np.sort(logits, 1)
    sure = ordered[:, -1] - ordered[:, -2] > 2 * compiled.program.error
    assert sure.mean() > 0.9
    assert (mask[sure] == logits.argmax(1)[sure]).all()


def constant(biases):
    """A network whose logits are the same for every image."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, len(biases))).eval()
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.copy_(torch.tensor(biases))
    return network


def test_ties(run_both):
    """Equal logits: more ones than one, the first of which counts; never a class that is clearly below, never none."""
    compiled = compile_network(constant([-1.0, 2.5, 2.5, 2.5 - 1e-3]), (1, 2, 2), RANGE, reveal="label")
    for _ in range(20):
        found, _, _ = diagnosed(compiled, noise(8, (1, 2, 2)), run_both)
        assert (found[:, 0, 0] == 0).all()
        assert (found[:, 0, 3] == 0).all()
        assert (found[:, 0, 1:3].sum(1) >= 1).all()
    assert (found[:, 0, 1:3] == 1).mean() > 0.9


def test_how_close_shows(run_both):
    """What is more than (classes + 2) units below the largest is never taken for a tie."""
    unit = 2.0**-20
    for below in (6, 7, 20):
        compiled = compile_network(constant([1.0, 1.0 - below * unit, -1.0]), (1, 2, 2), RANGE, reveal="label")
        source = {one.name: one for one in compiled.program.operations}[compiled.program.decision.inputs[0]]
        assert source.scale == 20
        found, _, _ = diagnosed(compiled, noise(64, (1, 2, 2)), run_both)
        assert (found[:, 0] == [1, 0, 0]).all(), below


CLASSES = [2, 3]


def large_parties(classes, **options):
    """Enough pixels for every message of the end to be large."""
    torch.manual_seed(4)
    network = nn.Sequential(nn.Conv2d(1, classes, 3, padding=1)).eval()
    return compile_network(network, (1, 200, 256), RANGE, task="segmentation", reveal="label", **options)


def chi_square(data):
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    expected = len(data) / 256
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("image", ["black", "noise"])
def test_every_message_looks_uniform_whatever_the_image(run_both, classes, image):
    compiled = large_parties(classes)
    images = torch.full((1, 1, 200, 256), -2.0) if image == "black" else noise(1, (1, 200, 256))
    found, ends, dealt = diagnosed(compiled, images, run_both)
    sent = [data for end in ends for data in end.sent if len(data) >= 4096]
    # z and the tree both ways, the vendor's half of the bits; of the hospital's half nothing but these.
    assert len(sent) == 1 + 2 * (2 + 3 * (classes - 1) * (classes > 2)) + 1
    assert max(map(chi_square, sent)) < 400  # 255 + 6 standard deviations
    assert chi_square(dealt) < 400
    assert 0 < found.mean() < 1 or image == "black"
    # What the vendor receives: masked input, z, masked bits, coins; nothing after them, and no half of the result.
    assert len(ends[0].sent) == len(ends[1].sent) == len(sent) // 2


def test_the_hospitals_view_is_its_bits(run_both, monkeypatch):
    """Its own half and the vendor's are uniform each, and together the bits and nothing else: no number is opened."""
    kept = []

    def remember(program, half, said, images):
        kept.append(half)
        return reveal(program, half, said, images)

    monkeypatch.setattr("medveil.encrypted.protocol.evaluate.reveal", remember)
    compiled = large_parties(2)
    images = noise(1, (1, 200, 256))
    found, ends, _ = diagnosed(compiled, images, run_both)
    size = found.size
    assert len(ends[1].sent[-1]) == size // 8
    ours, theirs = (unpack(half, size) for half in (kept[0], np.frombuffer(ends[1].sent[-1], "<u8")))
    assert ((ours ^ theirs) == found.ravel()).all()
    opened = [np.frombuffer(data, "<u4") for end in ends for data in end.sent if len(data) == 4 * size]
    assert len(opened) == 2
    z = opened[0] + opened[1]
    assert max(map(chi_square, (z.tobytes(), ends[1].sent[-1], kept[0].tobytes()))) < 400
    # None of them, nor two of them together but for both halves, agrees with the bits more often than a coin.
    sign, own = z >> np.uint32(31), opened[0] >> np.uint32(31)
    for guess in (ours, theirs, sign, own, ours ^ sign, theirs ^ sign):
        assert abs((guess == found.ravel()).mean() - 0.5) < 5 * 0.5 / math.sqrt(size)


def test_bits_behind_the_last_one_are_not_sent(run_both):
    compiled = compile_network(classifier(3), (1, 8, 8), RANGE, reveal="label")
    for _ in range(5):
        _, ends, _ = diagnosed(compiled, noise(1, (1, 8, 8)), run_both)
        assert int(np.frombuffer(ends[1].sent[-1], "<u8")[0]) < 2**3


def test_an_image_beyond_a_limit_is_refused(run_both):
    network = classifier(2)
    compiled = compile_network(network, (1, 8, 8), RANGE, reveal="label", activation_limit=0.05)
    with pytest.raises(ImageError, match="beyond the range"):
        diagnosed(compiled, noise(1, (1, 8, 8)), run_both)


@pytest.mark.parametrize(
    ("classes", "reveal"), [(2, "label"), (2, "probabilities"), (5, "label"), (5, "probabilities")]
)
def test_costs_are_predicted_and_programs_travel(run_both, classes, reveal):
    compiled = compile_network(classifier(classes), (1, 8, 8), RANGE, reveal=reveal)
    _, ends, dealt = diagnosed(compiled, noise(1, (1, 8, 8)), run_both)
    sent = [sum(map(len, end.sent)) for end in ends]
    told = compiled.describe()
    assert told["bytes_online"] == {"to_vendor": sent[0], "to_hospital": sent[1], "both": sum(sent)}
    assert told["bytes_dealt"] == len(dealt)
    assert told["error_stated"] <= told["error_bound"]
    assert from_json(to_json(compiled.program)) == public(compiled.program)


@given(st.integers(0, 2**32), st.lists(st.integers(-(2**29), 2**29), min_size=1, max_size=150), st.data())
@settings(max_examples=60, deadline=None)
def test_bits_are_the_signs_of_distances(run_both, seed, values, data):
    rng = np.random.default_rng(seed)
    cut = tuple(data.draw(st.lists(st.integers(-(2**30) + 1, 2**30 - 1), min_size=1, max_size=3)))
    operation = Decide("d", ("v",), (len(cut), len(values)), 0, False, 1.0, cut)
    numbers = np.array([values], np.int64)
    half = rng.integers(0, 2**32, numbers.shape, dtype=np.uint32)
    seeds = os.urandom(32), os.urandom(32)
    size = operation.size
    dealt = io.BytesIO(b"".join(deal_decision(Stream(seeds[0], "x"), Stream(seeds[1], "x"), size)))
    own = Stream(seeds[0], "x")
    taken = Decision.take(own, own, size), Decision.take(Stream(seeds[1], "x"), Dealt(dealt.read), size)
    rest = numbers.astype(np.uint32) - half
    ours, theirs, _ = run_both(
        lambda link: decide(Party(link, first=True), operation, [half], taken[0]),
        lambda link: decide(Party(link, first=False), operation, [rest], taken[1]),
    )
    found = unpack(ours ^ theirs, size).reshape(len(cut), len(values))
    distance = numbers - np.array(cut)[:, None]
    sure = np.abs(distance) > 1
    assert (found[sure] == (distance >= 0)[sure]).all()


def test_what_makes_no_sense_is_refused():
    two, three = classifier(2), classifier(3)
    for network, options in (
        (two, {"reveal": "all"}),
        (two, {"reveal": "probabilities", "levels": 1}),
        (two, {"reveal": "probabilities", "levels": 1001}),
        (two, {"reveal": "label", "threshold": 1.5}),
        (two, {"threshold": 0.5}),
        (three, {"reveal": "label", "threshold": 0.5}),
        (classifier(1), {"reveal": "label"}),
    ):
        with pytest.raises(ConfigError):
            compile_network(network, (1, 8, 8), RANGE, **options)
    mask = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1))
    with pytest.raises(ConfigError, match='reveal = "logits"'):
        compile_network(mask, (1, 8, 8), RANGE, task="segmentation", reveal="probabilities")
    smooth = nn.Sequential(nn.Conv2d(1, 3, 3, 2, 1), nn.Upsample(scale_factor=2, mode="bilinear"))
    with pytest.raises(ConfigError, match=r'interpolation.*reveal = "logits"'):
        compile_network(smooth, (1, 8, 8), RANGE, task="segmentation", reveal="label")


def test_levels_that_the_numbers_cannot_tell_apart_are_refused():
    wanted = cuts("probabilities", 3, 1000, None)
    assert len(thresholds(wanted, 3, 2.0**-20)) == 1001
    for unit in (2e-4, 1e-9):
        with pytest.raises(ConfigError, match="fewer levels"):
            thresholds(wanted, 3, unit)


def test_a_last_layer_with_groups_gets_one_of_its_own(run_both):
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1, groups=2)).eval()
    compiled = compile_network(network, (1, 8, 8), RANGE, task="segmentation", reveal="label")
    assert sum(isinstance(one, Linear) for one in compiled.program.operations) == 3
    images = noise(2, (1, 8, 8))
    found, _, _ = diagnosed(compiled, images, run_both)
    logits = logits_of(network, images)
    difference = logits[:, 1] - logits[:, 0]
    sure = np.abs(difference) > compiled.program.error
    assert (found[:, 0, 0][sure] == (difference >= 0)[sure]).all()


def test_numbers_that_would_wrap_around_when_bits_are_dropped_are_refused(run_both):
    """Dropping all fraction bits errs by up to one unit, which must still lie in the ring."""
    for bias in (-32767.5, 32767.5):
        with pytest.raises(UnsupportedLayer, match="32767"):
            compile_network(constant([bias, 0.0]), (1, 2, 2), RANGE, reveal_bits=0)
        compile_network(constant([bias, 0.0]), (1, 2, 2), RANGE)
    for _ in range(20):
        compiled = compile_network(constant([-32766.5, 32766.5]), (1, 2, 2), RANGE, reveal_bits=0)
        found, _, _ = diagnosed(compiled, noise(8, (1, 2, 2)), run_both)
        assert np.abs(found - [-32766.5, 32766.5]).max() <= 1.5
