"""Plans that train in a moment, on the phantom."""

from medveil.study.plan import load_plan

DISTRIBUTED = """
name = "distributed"
task = "classification"
seed = 3
[data]
partition = { kind = "iid", sites = 4 }
splits = { kind = "random", test = 0.25, validation = 0.15 }
[data.source]
kind = "phantom"
task = "classification"
subjects = 64
size = [16, 16]
scanners = 3
seed = 2
difficulty = 0.1
[model]
kind = "cnn"
channels = [2, 4]
strides = [2, 2]
[federation]
rounds = 2
algorithm = { kind = "fedsgd" }
weighting = "equal"
validate_every = 0
[training]
optimiser = { kind = "sgd", lr = 0.5 }
[evaluation]
threshold = 0.5
bootstrap = { resamples = 5 }
[references]
central = false
local_only = false
[privacy]
unit = "patient"
relation = "add-remove"
delta = 1e-3
trusted = "nobody"
held_out = "private"
[privacy.secure_aggregation]
colluding = 0
dropouts = 1
[privacy.dp]
kind = "distributed"
sampling = { rate = 0.3, nominal_units = 40, max_images = 2 }
clipping = { kind = "flat", l2_clip_norm = 0.5 }
noise = { multiplier = 2.0, generator = "seeded" }
[performance]
workers = 1
"""
_CLAIM = DISTRIBUTED[DISTRIBUTED.index("[privacy]") : DISTRIBUTED.index("[performance]")]
_SUMS = "[privacy.secure_aggregation]\ncolluding = 0\ndropouts = 1\n"

# In the clear: the server's optimiser steps along the mean gradient.
CLEAR = (
    DISTRIBUTED.replace(_CLAIM, "")
    .replace("validate_every = 0", "validate_every = 1")
    .replace("threshold = 0.5", 'threshold = "validation"')
    .replace('name = "distributed"', 'name = "clear"')
)
# Secure sums without a claim: local epochs, sites weighted by size, scores and cohort summed too.
SUMS = (
    CLEAR.replace('kind = "fedsgd"', 'kind = "fedavg", local_epochs = 1')
    .replace('weighting = "equal"', 'weighting = "size"\nselect = "best"')
    .replace('name = "clear"', 'name = "sums"')
    .replace("[performance]", _SUMS + "statistics = true\n[performance]")
)
# Every site protects its own patients, and answers in the clear: a round that is asked again is charged again.
LOCAL = (
    DISTRIBUTED.replace('kind = "distributed"', 'kind = "local"')
    .replace('kind = "fedsgd"', 'kind = "fedavg", local_steps = 1')
    .replace(_SUMS, "")
    .replace('name = "distributed"', 'name = "local"')
)
# A site that is lost costs no more than itself.
SPARING = CLEAR.replace("rounds = 2", "rounds = 2\nmin_sites = 3")

MASKS = """
name = "masks"
task = "segmentation"
seed = 3
[data]
partition = { kind = "natural", column = "scanner" }
splits = { kind = "random", test = 0.3, validation = 0.15 }
[data.source]
kind = "phantom"
task = "segmentation"
subjects = 24
size = [16, 16]
scanners = 2
seed = 2
difficulty = 0.1
[model]
kind = "unet"
[federation]
rounds = 1
algorithm = { kind = "fedavg", local_epochs = 2 }
select = "best"
[training]
batch_size = 8
optimiser = { kind = "adam", lr = 5e-3 }
loss = { kind = "dice_ce" }
[evaluation]
bootstrap = { resamples = 5 }
[references]
central = false
local_only = false
[performance]
workers = 1
"""

POLICY = """
tasks = ["classification", "segmentation"]
datasets = ["phantom-classification", "phantom-segmentation"]
max_rounds = 1000
max_parameters = 10000000
deidentified = true

[models]
architectures = "any"

[[submitters]]
role = "lead"

[privacy]
modes = ["none", "distributed", "local", "site"]
units = ["patient", "image", "site"]
delta = 1e-3
relation = "add-remove"
epsilon = 50.0
colluding = 0
min_sites = 2
min_included = 2
debug_randomness = true
held_out = ["public", "private"]
one_image_per_patient = true
secure_aggregation = false

[approval]
rule = "policy"
"""


def make_plan(folder, text, *overrides):
    """A plan of a text, with overrides."""
    path = folder / "plan.toml"
    path.write_text(text, encoding="utf-8")
    return load_plan(path, overrides)
