"""Small plans on the built-in phantom."""

import pytest

from medveil.study.plan import load_plan

CLASSIFICATION = """
name = "small"
task = "classification"
seed = 3
[data]
partition = { kind = "iid", sites = 3 }
splits = { kind = "random", test = 0.25, validation = 0.15 }
[data.source]
kind = "phantom"
task = "classification"
subjects = 160
size = [16, 16]
scanners = 3
seed = 2
difficulty = 0.1
[model]
kind = "cnn"
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
"""

SEGMENTATION = """
name = "small-masks"
task = "segmentation"
seed = 3
[data]
partition = { kind = "natural", column = "scanner" }
splits = { kind = "random", test = 0.3, validation = 0.15 }
[data.source]
kind = "phantom"
task = "segmentation"
subjects = 40
size = [16, 16]
scanners = 2
seed = 2
difficulty = 0.1
[model]
kind = "unet"
[federation]
rounds = 2
algorithm = { kind = "fedavg", local_epochs = 2 }
select = "best"
[training]
batch_size = 8
optimiser = { kind = "adam", lr = 5e-3 }
loss = { kind = "dice_ce" }
augmentation = { flip = [1], rotate_degrees = 10 }
[evaluation]
bootstrap = { resamples = 50 }
"""


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
