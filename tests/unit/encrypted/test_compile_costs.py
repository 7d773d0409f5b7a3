"""What describe() predicts, against what two parties really send; and what they reveal, against the network."""

import io
import json
import os
import threading

import pytest
import torch
from torch import nn

from medveil.encrypted import program as ops
from medveil.encrypted.compiler.cost import PRODUCTS as NUM_PRODUCTS
from medveil.encrypted.compiler.cost import TABLES as NUM_TABLES
from medveil.encrypted.compiler.cost import TREE_BITS
from medveil.encrypted.compiler.main import compile as compile_network
from medveil.encrypted.protocol.compare import PRODUCTS, TABLES, VARIABLES
from medveil.encrypted.protocol.deal import (
    deal,
    masked_weights,
    prepare_hospital,
    prepare_vendor,
    read_masked_weights,
    weight_masks,
)
from medveil.encrypted.protocol.evaluate import hospital, vendor
from medveil.encrypted.serial import from_json, public, to_json
from medveil.errors import ImageError


class Timed:
    """An end of a pipe with a clock: what is received comes one latency after it was sent."""

    outstanding = 1 << 28

    def __init__(self, end):
        self.end, self.other, self.clock, self.stamps, self.sent, self.got = end, None, 0, [], 0, 0

    def send(self, data):
        self.sent += len(bytes(data))
        self.stamps.append((self.sent, self.clock))
        self.end.send(data)

    def receive(self, size):
        data = self.end.receive(size)
        self.got += size
        sent = next(clock for offset, clock in self.other.stamps if offset >= self.got)
        self.clock = max(self.clock, sent + 1)
        return data


def evaluate(compiled, images, run_both, seeds):
    """Result, both ends, and the bytes dealt."""
    program, weights, seed = compiled.program, compiled.weights, os.urandom(32)
    masks = weight_masks(program, seed)
    dealt = b"".join(deal(program, masks, hospital=seeds[0], vendor=seeds[1]))
    ours = prepare_hospital(program, read_masked_weights(program, masked_weights(program, weights, seed)), seeds[0])
    theirs = prepare_vendor(program, seeds[1], io.BytesIO(dealt).read)
    integers = (images * 2**16).round().long().numpy()
    timed, met = {}, threading.Barrier(2, timeout=30)

    def wrapped(end, place):
        timed[place] = Timed(end)
        met.wait()
        timed[place].other = timed[1 - place]
        return timed[place]

    found, _, _ = run_both(
        lambda end: hospital(ours, wrapped(end, 0), integers, os.urandom(32)),
        lambda end: vendor(theirs, wrapped(end, 1), weights),
    )
    return torch.from_numpy(found), timed[0], timed[1], len(dealt)


class Branches(nn.Module):
    """Two layers that read one value, a sum that is narrowed, pooling with padding over three axes."""

    def __init__(self):
        super().__init__()
        self.first, self.one, self.two = (
            nn.Conv3d(1, 3, 3, padding=1),
            nn.Conv3d(3, 3, 1),
            nn.Conv3d(3, 3, 3, padding=1),
        )
        self.pool, self.head = nn.MaxPool3d(3, 2, 1), nn.Linear(3, 2)

    def forward(self, images):
        features = self.first(images)
        features = features + 0.2 * self.two(self.one(features).relu())
        return self.head(self.pool(features).mean((2, 3, 4)))


_NETS = [
    (nn.Sequential(nn.Flatten(), nn.Linear(25, 3)), (1, 5, 5), 32.0),
    (nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(45, 3)), (1, 5, 5), 32.0),
    (nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(45, 3)), (1, 5, 5), 0.9),
    # Ends with an exchange, after which the check of the limits takes a message of its own.
    (nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(45, 9), nn.ReLU()), (1, 5, 5), 0.9),
    (
        nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            nn.ConvTranspose2d(6, 4, 3, 2, 1, 1, groups=2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AvgPool2d(3),
            nn.Flatten(),
            nn.Linear(64, 2),
        ),
        (2, 12, 12),
        4.0,
    ),
    (Branches(), (1, 6, 7, 8), 32.0),
]


@pytest.mark.parametrize(("net", "shape", "limit"), _NETS)
def test_predicted_bytes_rounds_and_numbers_are_what_two_parties_send(net, shape, limit, run_both, seeds):
    torch.manual_seed(0)
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    compiled = compile_network(net, shape, (0.0, 1.0), activation_limit=limit)
    images = torch.rand((1, *shape), dtype=torch.float64) * 0.5
    numbers, ours, theirs, dealt = evaluate(compiled, images, run_both, seeds)
    described = compiled.describe()
    assert described["bytes_online"] == {
        "to_vendor": ours.sent,
        "to_hospital": theirs.sent,
        "both": ours.sent + theirs.sent,
    }
    assert described["bytes_dealt"] == dealt
    assert described["rounds"] == ours.clock
    with torch.no_grad():
        error = (numbers - net.double().eval()(images)).abs().max().item()
    net.float()
    assert error <= compiled.program.error
    assert error < 1e-3
    assert from_json(to_json(compiled.program)) == public(compiled.program)
    json.dumps(described, allow_nan=False)


def test_an_image_beyond_the_limit_is_refused_at_run_time(run_both, seeds):
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2))
    with torch.no_grad():
        net[0].weight.fill_(4.0)
        net[0].bias.fill_(0.0)
    compiled = compile_network(net, (1, 3, 3), (0.0, 1.0), activation_limit=3.0)
    assert compiled.describe()["limits_checked"] == 9
    inside = torch.full((1, 1, 3, 3), 0.7499, dtype=torch.float64)
    evaluate(compiled, inside, run_both, seeds)
    beyond = inside.clone()
    beyond[0, 0, 1, 1] = 0.7501
    with pytest.raises(ImageError, match="range"):
        evaluate(compiled, beyond, run_both, (os.urandom(32), os.urandom(32)))


def test_constants_of_the_formulas_are_those_of_the_comparison():
    assert (len(PRODUCTS), len(TABLES), len(VARIABLES)) == (NUM_PRODUCTS, NUM_TABLES, TREE_BITS)


def test_comparisons_are_counted_by_hand():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d((2, 3), (2, 3)), nn.Flatten(), nn.Linear(24, 5), nn.ReLU()
    )
    compiled = compile_network(net, (1, 8, 14), (0.0, 1.0))
    # 2 x 6 x 12: maxima of three along the rows leave 2 x 6 x 4, of two down the columns 2 x 3 x 4.
    assert compiled.describe()["comparisons"] == 2 * (2 * 6 * 4) + 2 * 3 * 4 + 2 * 3 * 4 + 5
    kinds = {"Input": 1, "Linear": 2, "MaxPool": 1, "Narrow": 2, "Relu": 2, "Reshape": 1}
    assert compiled.describe()["operations"] == kinds
    assert isinstance(compiled.program.output, ops.Relu)
