"""Small plans on the built-in phantom."""

import pytest

import tiny_plans
from medveil.study.plan import load_plan
from tiny_plans import merged

CLASSIFICATION = merged(
    tiny_plans.CLASSIFICATION,
    """
name = "small"
[federation]
rounds = 3
algorithm = { kind = "fedavg", local_epochs = 1 }
[training]
batch_size = 16
optimiser = { kind = "adam", lr = 3e-3 }
[training.augmentation]
shift = 0.05
[evaluation]
bootstrap = { resamples = 50 }
subgroups = ["scanner"]
""",
)

SEGMENTATION = merged(
    tiny_plans.SEGMENTATION,
    """
name = "small-masks"
[data.source]
subjects = 40
[federation]
rounds = 2
[training]
augmentation = { flip = [1], rotate_degrees = 10 }
[evaluation]
bootstrap = { resamples = 50 }
""",
)


@pytest.fixture
def write_plan(tmp_path):
    """Write a plan file; ``write_plan(text)`` gives its path."""

    def write(text, name="plan.toml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def small_plan_file(write_plan):
    """Path of the small classification plan."""
    return write_plan(CLASSIFICATION)


@pytest.fixture
def small_plan(write_plan):
    """``small_plan("federation.rounds=1", ...)`` gives the small classification plan."""

    def make(*overrides, text=CLASSIFICATION):
        return load_plan(write_plan(text), overrides)

    return make


@pytest.fixture
def small_masks(write_plan):
    """The small segmentation plan."""

    def make(*overrides):
        return load_plan(write_plan(SEGMENTATION), overrides)

    return make
