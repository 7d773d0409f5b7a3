"""Both parties evaluate compiled networks: the answer is the network's, and nothing else can be read off the wire."""

import io
import os

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from medveil.encrypted.compiler.main import compile as compile_network
from medveil.encrypted.protocol.deal import (
    deal,
    masked_weights,
    prepare_hospital,
    prepare_vendor,
    read_masked_weights,
    weight_masks,
)
from medveil.encrypted.protocol.evaluate import hospital, vendor
from medveil.encrypted.protocol.linear import apply
from medveil.encrypted.protocol.ring import Stream, wide_bytes, wide_from
from medveil.errors import ImageError, ModelError
from medveil.models.registry import ModelConfig, build

RANGE = (-2.0, 2.0)


def zoo(kind, shape, task="classification", **options):
    config = TypeAdapter(ModelConfig).validate_python({"kind": kind, **options})
    return build(config, input_shape=shape, num_classes=3, seed=1, task=task).eval()


def pooled():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(6, 8, 3, groups=2),
        nn.MaxPool2d(2), nn.ConvTranspose2d(8, 4, 2, stride=2), nn.ReLU(), nn.Upsample(scale_factor=2), nn.AvgPool2d(3),
        nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    ).eval()  # fmt: skip


NETS = {
    "cnn": (lambda: zoo("cnn", (1, 28, 28)), (1, 28, 28), "classification"),
    "resnet20": (lambda: zoo("resnet20", (1, 32, 32)), (1, 32, 32), "classification"),
    "unet": (lambda: zoo("unet", (1, 16, 16), "segmentation"), (1, 16, 16), "segmentation"),
    "pooled": (pooled, (2, 24, 24), "classification"),
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), (1, 4, 4), "classification"),
}


class Parties:
    """A compiled network with everything that is dealt once."""

    def __init__(self, name, run_both, **options):
        torch.manual_seed(2)
        make, self.shape, task = NETS[name]
        self.network = make()
        self.compiled = compile_network(self.network, self.shape, RANGE, task=task, **options)
        self.program, self._run_both = self.compiled.program, run_both
        self.seed = os.urandom(32)
        sent = masked_weights(self.program, self.compiled.weights, self.seed)
        self.masked = read_masked_weights(self.program, sent)
        self.masks = weight_masks(self.program, self.seed)

    def evaluate(self, images, seeds=None):
        """What is revealed, and both ends of the link."""
        ours, theirs = seeds or (os.urandom(32), os.urandom(32))
        self.dealt = b"".join(deal(self.program, self.masks, hospital=ours, vendor=theirs, images=len(images)))
        encoded = np.rint(images.double().numpy() * 2.0**self.program.input.scale).astype(np.int64)
        reader = io.BytesIO(self.dealt)
        halves = (
            prepare_hospital(self.program, self.masked, ours, len(images)),
            prepare_vendor(self.program, theirs, reader.read, len(images)),
        )
        assert not reader.read(1)
        result, _, ends = self._run_both(
            lambda link: hospital(halves[0], link, encoded, os.urandom(32)),
            lambda link: vendor(halves[1], link, self.compiled.weights),
        )
        return result, ends


def images_of(parties, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *parties.shape, generator=generator) * 4 - 2


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("count", [1, 3])
def test_the_answer_is_the_networks(run_both, name, count):
    parties = Parties(name, run_both)
    images = images_of(parties, count)
    found, ends = parties.evaluate(images)
    with torch.no_grad():
        wanted = parties.network.double()(images.double()).numpy()
    assert found.shape == wanted.shape
    error = np.abs(found - wanted).max()
    assert error <= parties.program.error
    assert error < 2e-3
    told = parties.compiled.describe()
    if count == 1:  # predicted to the byte
        sent = [sum(map(len, end.sent)) for end in ends]
        assert told["bytes_online"] == {"to_vendor": sent[0], "to_hospital": sent[1], "both": sum(sent)}
        assert told["bytes_dealt"] == len(parties.dealt)


def chi_square(data):
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
    expected = len(data) / 256
    return float(((counts - expected) ** 2 / expected).sum())


LARGE = 4096  # bytes of a message that say something about their distribution


@pytest.mark.parametrize("image", ["black", "noise"])
def test_every_large_message_looks_uniform_whatever_the_image(run_both, image):
    parties = Parties("cnn", run_both)
    images = torch.full((2, 1, 28, 28), -2.0) if image == "black" else images_of(parties, 2)
    _, ends = parties.evaluate(images)
    large = [data for end in ends for data in end.sent if len(data) >= LARGE]
    assert len(large) > 10
    assert max(map(chi_square, large)) < 400  # 255 + 6 standard deviations
    assert chi_square(parties.dealt) < 400


def opened(ends):
    """z of the first ReLU: the sum of what both sent of it."""
    halves = [np.frombuffer(end.sent[place], "<u4") for end, place in zip(ends, (1, 0), strict=True)]
    return (halves[0] + halves[1]).tobytes()


def test_what_the_parties_open_together_looks_uniform_too(run_both):
    parties = Parties("cnn", run_both)
    for images in (torch.full((2, 1, 28, 28), -2.0), images_of(parties, 2)):
        assert chi_square(opened(parties.evaluate(images)[1])) < 400


@pytest.mark.parametrize("purpose", ["wide", "narrow"])
def test_a_build_without_one_mask_is_caught(run_both, monkeypatch, purpose):
    """The tests above can fail: masks of linear layers, or of z, are zero."""
    parties = Parties("cnn", run_both)
    original = getattr(Stream, purpose)
    with monkeypatch.context() as patched:
        patched.setattr(Stream, purpose, lambda stream, count: np.zeros_like(original(stream, count)))
        _, ends = parties.evaluate(torch.full((2, 1, 28, 28), -2.0))
    seen = [data for end in ends for data in end.sent if len(data) >= LARGE] if purpose == "wide" else [opened(ends)]
    assert max(map(chi_square, seen)) > 10_000


def test_what_is_sent_differs_each_time_and_what_is_revealed_does_not(run_both):
    parties = Parties("cnn", run_both)
    images = images_of(parties, 1)
    first, ends = parties.evaluate(images)
    again, others = parties.evaluate(images)
    assert np.abs(first - again).max() < 1e-4
    for end, other in zip(ends, others, strict=True):
        assert all(one != two for one, two in zip(end.sent, other.sent, strict=True) if len(one) > 8)


def test_one_correlation_for_two_images_shows_their_difference(run_both):
    """Why a correlation is used once."""
    parties = Parties("cnn", run_both)
    seeds = os.urandom(32), os.urandom(32)
    images = images_of(parties, 2)
    sent = [parties.evaluate(images[place : place + 1], seeds)[1][0].sent[0] for place in (0, 1)]
    low = [np.frombuffer(data, "<u4", 784).astype(np.int64) for data in sent]
    difference = ((low[0] - low[1] + 2**31) % 2**32 - 2**31) / 2**16
    np.testing.assert_allclose(difference, (images[0] - images[1]).flatten(), atol=1e-4)


def test_an_image_that_goes_beyond_a_limit_is_refused_and_never_silently_wrong(run_both):
    parties = Parties("cnn", run_both, activation_limit=0.5)
    assert parties.compiled.describe()["limits_checked"] > 0
    with pytest.raises(ImageError, match="beyond the range"):
        parties.evaluate(images_of(parties, 1))
    parties = Parties("cnn", run_both, activation_limit=8.0)
    parties.evaluate(images_of(parties, 1))


@pytest.mark.parametrize("bits", [0, 3, 16])
def test_bits_that_are_not_revealed_do_not_leave_the_vendor(run_both, bits):
    parties = Parties("cnn", run_both, reveal_bits=bits)
    images = images_of(parties, 60)
    found, ends = parties.evaluate(images)
    with torch.no_grad():
        wanted = parties.network.double()(images.double()).numpy()
    error = (found - wanted) * 2.0**bits
    assert np.abs(error).max() <= 1 + 2.0**bits * 1e-3
    assert abs(error.mean()) < 0.2 + 2.0**bits * 1e-3  # 180 numbers with a deviation below 1/2
    assert ((found * 2.0**bits) % 1 == 0).all()
    last = wide_from(ends[1].sent[-1], found.size)
    assert int(last.max()) < 2 ** (48 - parties.program.hidden)
    assert int(last.max()) > 2 ** (47 - parties.program.hidden)


def test_what_the_vendor_is_dealt_for_a_linear_layer_hides_the_input_mask(run_both):
    """It holds L(r, R) - s and R. Without s it could solve for r, and then read the image off x - r."""
    parties = Parties("cnn", run_both)
    seeds = os.urandom(32), os.urandom(32)
    parties.evaluate(images_of(parties, 4), seeds)
    layer = parties.program.linears()[0]
    count = 4 * layer.size
    stream = Stream(seeds[0], "evaluation")
    r = stream.wide(4 * 784).reshape(4, 1, 28, 28)
    hidden = wide_from(parties.dealt, count) - apply(layer, r, parties.masks[layer.name]).ravel()
    assert chi_square(wide_bytes(hidden)) < 400
    assert (((hidden + stream.wide(count)) & np.uint64(2**48 - 1)) == 0).all()  # it is -s, and nothing else


def test_masked_weights_of_another_length_are_refused(run_both):
    parties = Parties("linear", run_both)
    sent = masked_weights(parties.program, parties.compiled.weights, parties.seed)
    with pytest.raises(ModelError, match="do not fit"):
        read_masked_weights(parties.program, sent + b"x")


def test_masked_weights_say_nothing_of_the_weights(run_both):
    parties = Parties("resnet20", run_both)
    sent = masked_weights(parties.program, parties.compiled.weights, parties.seed)
    assert chi_square(sent) < 400
