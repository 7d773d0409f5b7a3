"""Plans that train in a moment, on the phantom. A test adds what it is about with :func:`merged`."""


def merged(*texts):
    """One plan of several: what a later text says of a key, or of a table's key, takes the place of what was said.

    Every text has one ``key = value`` a line, as below; an inline table is replaced as a whole.
    """
    tables = {}
    for text in texts:
        table = tables.setdefault("", {})
        for line in filter(None, text.splitlines()):
            if line.startswith("["):
                table = tables.setdefault(line, {})
            else:
                key, equals, value = line.partition(" = ")
                if not equals:
                    raise ValueError(f"not a line of a plan: {line}")
                table[key] = value
    lines = []
    for header, table in tables.items():
        lines += [header] if header else []
        lines += [f"{key} = {value}" for key, value in table.items()]
    return "\n".join(["", *lines, ""])


def without(text, *headers):
    """A plan less these tables: ``without(text, "[privacy]", "[privacy.dp]")``."""
    head, *tables = text.split("\n[")
    kept = [table for table in tables if f"[{table}".partition("\n")[0] not in headers]
    if len(tables) - len(kept) != len(headers):
        raise ValueError(f"not all of these tables are there: {headers}")
    return "\n[".join([head, *(table.removesuffix("\n") for table in kept)]) + "\n"


ALONE = """
[references]
central = false
local_only = false
"""
SMALL_NETWORK = """
[model]
kind = "cnn"
channels = [4, 8]
strides = [2, 2]
"""
ONE_WORKER = """
[evaluation]
bootstrap = { resamples = 5 }
[performance]
workers = 1
"""

CLASSIFICATION = """
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
"""
SEGMENTATION = """
task = "segmentation"
seed = 3
[data]
partition = { kind = "natural", column = "scanner" }
splits = { kind = "random", test = 0.3, validation = 0.15 }
[data.source]
kind = "phantom"
task = "segmentation"
size = [16, 16]
scanners = 2
seed = 2
difficulty = 0.1
[model]
kind = "unet"
[federation]
algorithm = { kind = "fedavg", local_epochs = 2 }
select = "best"
[training]
batch_size = 8
optimiser = { kind = "adam", lr = 5e-3 }
loss = { kind = "dice_ce" }
"""
# Trained for a round or two, as a run to attack or to serve.
FINISHED = merged(
    """
seed = 1
[data]
partition = { kind = "iid", sites = 2 }
splits = { kind = "random", test = 0.3, validation = 0.2 }
[data.source]
kind = "phantom"
size = [16, 16]
[federation]
algorithm = { kind = "fedavg", local_steps = 2 }
[training]
batch_size = 8
""",
    ALONE,
    ONE_WORKER,
)

_STEPS = """
[federation]
algorithm = { kind = "fedsgd" }
weighting = "equal"
validate_every = 0
[training]
optimiser = { kind = "sgd", lr = 0.5 }
"""
CLAIM = """
[privacy]
unit = "patient"
relation = "add-remove"
delta = 1e-3
trusted = "curator"
held_out = "public"
[privacy.dp]
kind = "central"
clipping = { kind = "flat", l2_clip_norm = 0.5 }
"""
_NOBODY = """
[privacy]
trusted = "nobody"
"""
# Differential privacy for patients, one step of the network a round: a curator's, the sites' together, every site's.
CENTRAL = merged(CLASSIFICATION, SMALL_NETWORK, _STEPS, ALONE, CLAIM)
DISTRIBUTED = merged(
    CENTRAL,
    _NOBODY,
    """
[evaluation]
threshold = 0.5
[privacy.secure_aggregation]
colluding = 1
dropouts = 1
[privacy.dp]
kind = "distributed"
sampling = { rate = 0.3, nominal_units = 40 }
""",
)
LOCAL = _NOBODY + '[privacy.dp]\nkind = "local"\n'
"""To be merged into a plan: every site on its own."""
# One step of a network, for the audit.
AUDITED = merged(
    """
name = "audited"
task = "classification"
[data]
source = { kind = "phantom", size = [16, 16], repeated = 0.0 }
[model]
kind = "cnn"
channels = [4, 4]
strides = [2, 1]
[federation]
rounds = 10
""",
    _STEPS,
    ALONE,
    CLAIM,
    """
[privacy]
delta = 1e-5
[privacy.dp]
sampling = { rate = 0.2, nominal_units = 400 }
clipping = { kind = "flat", l2_clip_norm = 1.0 }
noise = { multiplier = 1.5 }
""",
)
