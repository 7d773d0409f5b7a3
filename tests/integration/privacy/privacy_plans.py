"""Plans with a privacy claim, and what may happen while they run."""

from contextlib import contextmanager

import tiny_plans
from medveil.errors import DivergedError
from medveil.federation.messages import Task, decode
from medveil.study import federated
from tiny_plans import ONE_WORKER, merged, without

SITES = [f"site-{number}" for number in range(1, 6)]

# Five sites share the noise of a step.
DISTRIBUTED = merged(
    tiny_plans.DISTRIBUTED,
    ONE_WORKER,
    """
name = "distributed"
[data]
partition = { kind = "iid", sites = 5 }
[data.source]
subjects = 100
[federation]
rounds = 3
[privacy]
held_out = "private"
[privacy.dp]
sampling = { rate = 0.3, nominal_units = 60, max_images = 2 }
noise = { multiplier = 2.0 }
""",
)
WITHOUT_SUMS = without(DISTRIBUTED, "[privacy.secure_aggregation]")
THREE = ("data.partition={kind='iid', sites=3}", "privacy.secure_aggregation.colluding=0")

# A curator, every site on its own, and a claim for whole sites; with views, a curve and averaged weights.
CENTRAL = merged(
    tiny_plans.CENTRAL,
    """
name = "central"
[federation]
rounds = 4
validate_every = 2
ema = 0.5
[training.augmentation]
shift = 0.05
[evaluation]
bootstrap = { resamples = 50 }
[privacy.dp]
sampling = { rate = 0.3, nominal_units = 100, max_images = 2 }
noise = { epsilon = 4.0 }
views = 2
""",
)
LOCAL = merged(
    CENTRAL,
    tiny_plans.LOCAL,
    """
[federation]
rounds = 2
algorithm = { kind = "fedavg", local_steps = 3 }
""",
)
SITE = merged(
    without(LOCAL, "[privacy.dp]"),
    """
[privacy]
unit = "site"
trusted = "server"
[privacy.dp]
kind = "site"
clipping = { kind = "flat", l2_clip_norm = 0.5 }
noise = { multiplier = 5.0 }
nominal_sites = 3
""",
)
SEEDED = merged(CENTRAL, '[privacy.dp]\nnoise = { epsilon = 4.0, generator = "seeded" }')
PLAIN = without(CENTRAL, "[privacy]", "[privacy.dp]")


def masks(text, *changes):
    """The same plan, to segment."""
    segmentation = """
task = "segmentation"
[data.source]
task = "segmentation"
[model]
kind = "unet"
depth = 1
width = 2
[training]
loss = { kind = "dice_ce" }
"""
    return merged(without(text, "[model]"), segmentation, *changes)


class PowerCutError(Exception):
    """No error of medveil's: nothing in it may catch this."""


def power_cut(monkeypatch, owner, name, *, call, before):
    """The power goes at the ``call``-th call of ``name``, before or after it did its work, for good, whoever calls."""
    original, calls = getattr(owner, name), []

    def failing(*arguments, **keywords):
        calls.append(name)
        if len(calls) > call or (before and len(calls) == call):
            raise PowerCutError
        result = original(*arguments, **keywords)
        if len(calls) == call:
            raise PowerCutError
        return result

    monkeypatch.setattr(owner, name, failing)
    return calls


@contextmanager
def failing(monkeypatch, *names, from_round=1):
    """These sites fail in and after a round."""
    original = federated.Site.receive

    def receive(site, data):
        message, _ = decode(data)
        if site.name in names and isinstance(message, Task) and message.train and message.round >= from_round:
            raise DivergedError("The connection is gone")
        return original(site, data)

    with monkeypatch.context() as patched:
        patched.setattr(federated.Site, "receive", receive)
        yield
