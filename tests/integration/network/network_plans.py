"""Plans that train in a moment, on the phantom."""

import tiny_plans
from medveil.study.plan import load_plan
from tiny_plans import ALONE, ONE_WORKER, merged, without

_SUMS = """
[privacy.secure_aggregation]
colluding = 0
dropouts = 1
"""
DISTRIBUTED = merged(
    tiny_plans.DISTRIBUTED,
    ONE_WORKER,
    _SUMS,
    """
name = "distributed"
[data]
partition = { kind = "iid", sites = 4 }
[data.source]
subjects = 64
[model]
channels = [2, 4]
[federation]
rounds = 2
[privacy]
held_out = "private"
[privacy.dp]
sampling = { rate = 0.3, nominal_units = 40, max_images = 2 }
noise = { multiplier = 2.0, generator = "seeded" }
""",
)
# In the clear: the server's optimiser steps along the mean gradient.
CLEAR = merged(
    without(DISTRIBUTED, "[privacy]", "[privacy.secure_aggregation]", "[privacy.dp]"),
    """
name = "clear"
[federation]
validate_every = 1
[evaluation]
threshold = "validation"
""",
)
# Secure sums without a claim: local epochs, sites weighted by size, scores and cohort summed too.
SUMS = merged(
    CLEAR,
    _SUMS,
    """
name = "sums"
[federation]
algorithm = { kind = "fedavg", local_epochs = 1 }
weighting = "size"
select = "best"
[privacy.secure_aggregation]
statistics = true
""",
)
# Every site protects its own patients, and answers in the clear: a round that is asked again is charged again.
LOCAL = merged(
    without(DISTRIBUTED, "[privacy.secure_aggregation]"),
    tiny_plans.LOCAL,
    """
name = "local"
[federation]
algorithm = { kind = "fedavg", local_steps = 1 }
""",
)
# A site that is lost costs no more than itself.
SPARING = merged(CLEAR, "[federation]\nmin_sites = 3")

MASKS = merged(
    tiny_plans.SEGMENTATION,
    ALONE,
    ONE_WORKER,
    """
name = "masks"
[data.source]
subjects = 24
[federation]
rounds = 1
""",
)

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
