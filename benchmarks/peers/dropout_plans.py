"""Plans that train in a moment, and what every site of the sweep allows."""

_BASE = """
task = "classification"
seed = 3
[data]
partition = {{ kind = "iid", sites = {sites} }}
splits = {{ kind = "random", test = 0.25, validation = 0.15 }}
[data.source]
kind = "phantom"
task = "classification"
subjects = {subjects}
size = [16, 16]
scanners = 3
seed = 2
difficulty = 0.1
[model]
kind = "cnn"
channels = [4, 8]
strides = [2, 2]
[references]
central = false
local_only = false
[performance]
workers = 1
[training]
optimiser = {{ kind = "sgd", lr = 0.05 }}
"""
# Noise from the system's generator: that a round is repeated with the same vector is then the outbox's doing alone.
PRIVATE = (
    'name = "dropouts-{number}"\n'
    + _BASE
    + """
[federation]
rounds = {rounds}
algorithm = {{ kind = "fedsgd" }}
weighting = "equal"
validate_every = 0
[evaluation]
threshold = 0.5
bootstrap = {{ resamples = 5 }}
[privacy]
unit = "patient"
relation = "add-remove"
delta = 1e-3
trusted = "nobody"
held_out = "private"
[privacy.secure_aggregation]
colluding = {colluding}
dropouts = {dropouts}
chunk_bytes = 1024
[privacy.dp]
kind = "distributed"
sampling = {{ rate = 0.3, nominal_units = {nominal}, max_images = 2 }}
clipping = {{ kind = "flat", l2_clip_norm = 0.5 }}
noise = {{ multiplier = 8.0 }}
"""
)
# Without a claim, for the sums that a private plan leaves out: validation scores, cohort, threshold.
PLAIN = (
    'name = "sums-{number}"\n'
    + _BASE
    + """
[federation]
rounds = {rounds}
algorithm = {{ kind = "fedavg", local_epochs = 1 }}
weighting = "size"
select = "best"
validate_every = 1
[evaluation]
threshold = "validation"
bootstrap = {{ resamples = 5 }}
[privacy.secure_aggregation]
colluding = {colluding}
dropouts = {dropouts}
chunk_bytes = 1024
statistics = true
"""
)
POLICY = """
tasks = ["classification"]
datasets = ["phantom-classification"]
max_rounds = 1000000
max_parameters = 10000000
deidentified = true
[models]
architectures = "any"
[[submitters]]
role = "lead"
[privacy]
modes = ["none", "distributed"]
units = ["patient"]
delta = 1e-3
relation = "add-remove"
epsilon = 50.0
colluding = 0
min_sites = 2
min_included = 2
held_out = ["private"]
one_image_per_patient = true
secure_aggregation = true
[approval]
rule = "policy"
"""
