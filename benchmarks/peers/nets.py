"""The three networks of ``encrypted_inference.py`` for engines with functions of their own; batch normalisation folded.

A network is a list of layers; an engine gives an object with ``conv``, ``relu``, ``average``, ``largest``, ``overall``,
``flatten`` and ``linear``. Weights are random, uniform within 1 / sqrt(fan in), as torch begins.
"""

import numpy as np

LENET = (
    ("conv", 6, 5, 1, 2), ("relu",), ("average", 2), ("conv", 16, 5, 1, 0), ("relu",), ("average", 2), ("flatten",),
    ("linear", 120), ("relu",), ("linear", 84), ("relu",), ("linear", 10),
)  # fmt: skip
END = (("overall",), ("flatten",), ("linear", 3))


def _blocks(widths, depth):
    return tuple(
        ("block", width, 2 if number == 0 and place else 1)
        for place, width in enumerate(widths)
        for number in range(depth)
    )


NETS = {
    "lenet": ((1, 28, 28), LENET),
    "resnet20": ((1, 64, 64), (("conv", 16, 3, 1, 1), ("relu",), *_blocks((16, 32, 64), 3), *END)),
    "resnet18": (
        (3, 224, 224),
        (("conv", 64, 7, 2, 3), ("relu",), ("largest", 3, 2, 1), *_blocks((64, 128, 256, 512), 2), *END),
    ),
}
"""By name: shape of an image (channels, height, width), and layers."""


def parameters(net, seed=0):
    """Weights and biases in the order of their use: (out, in, k, k) or (out, in), and (out,); float32."""
    (channels, height, _), layers = NETS[net]
    generator, found, size = np.random.default_rng(seed), [], height

    def add(*shape):
        bound = np.prod(shape[1:]) ** -0.5
        found.append(generator.uniform(-bound, bound, shape).astype(np.float32))
        found.append(generator.uniform(-bound, bound, shape[:1]).astype(np.float32))

    for layer in layers:
        kind, *values = layer
        if kind == "conv":
            width, kernel, stride, padding = values
            add(width, channels, kernel, kernel)
            channels, size = width, (size + 2 * padding - kernel) // stride + 1
        elif kind == "block":
            width, stride = values
            add(width, channels, 3, 3)
            add(width, width, 3, 3)
            if stride != 1 or width != channels:
                add(width, channels, 1, 1)
            channels, size = width, -(-size // stride)
        elif kind == "average":
            size //= values[0]
        elif kind == "flatten":
            channels *= size**2
        elif kind == "overall":
            size = 1
        elif kind == "linear":
            add(values[0], channels)
            channels = values[0]
    return found


def forward(net, weights, x, ops):
    """Evaluate a network with an engine's functions; ``weights`` as from :func:`parameters`, in the engine's form."""
    given = iter(weights)
    channels = NETS[net][0][0]

    def conv(x, stride, padding):
        return ops.conv(x, next(given), next(given), stride, padding)

    for layer in NETS[net][1]:
        kind, *values = layer
        if kind == "conv":
            x = conv(x, *values[2:])
            channels = values[0]
        elif kind == "block":
            y = ops.relu(conv(x, values[1], 1))
            y = conv(y, 1, 1)
            short = x if values == [channels, 1] else conv(x, values[1], 0)
            x = ops.relu(y + short)
            channels = values[0]
        elif kind == "linear":
            x = ops.linear(x, next(given), next(given))
        else:
            x = getattr(ops, kind)(x, *values)
    return x


def image(net, seed=1):
    """Random between -2 and 2, float32, shape (1, channels, height, width)."""
    return np.random.default_rng(seed).uniform(-2, 2, (1, *NETS[net][0])).astype(np.float32)
