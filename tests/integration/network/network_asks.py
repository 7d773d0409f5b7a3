"""What a server asks of a site in a run."""

import numpy as np

from medveil.federation.messages import Open, Task, encode
from medveil.training.vectors import floating_buffers, to_vector, trainable

RUN = "ab" * 16


def opening(place, **changes):
    facts = {"run": RUN, "attempt": 1, "rounds_done": 0, "sites": place.names, "lost": []}
    return encode(Open(**{**facts, **changes}))


def weights(own, factor=1.0):
    return {
        "weights": np.float32(factor) * to_vector(trainable(own.first)),
        "buffers": to_vector(floating_buffers(own.first)),
    }


def task(place, number=1, *, train=True, sites=None):
    return Task(round=number, validate_model=not train, train=train, sites=sites or place.names)
