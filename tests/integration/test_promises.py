"""What a plan promises, against training written out by hand in a few lines of torch.

Batches are larger than any site's data, so every step sees all of it and no order of examples matters: the oracle
needs none of medveil's seeds, loops, messages or optimisers, only the data and the first weights.
"""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from medveil.study.arms import build_model
from medveil.study.prepare import prepare
from medveil.study.train import train

LR = 0.1
ROUNDS = 3
PLAIN = (
    "data.source.subjects=80",
    "data.partition={kind='quantity', fractions=[0.7, 0.3]}",
    "training.batch_size=1000",
    f"training.optimiser={{kind='sgd', lr={LR}}}",
    "training.augmentation={}",
    f"federation.rounds={ROUNDS}",
    "federation.algorithm={kind='fedavg', local_epochs=2}",
    "evaluation.bootstrap.resamples=0",
    "evaluation.subgroups=[]",
)
ONLY_FEDERATED = ("references.central=false", "references.local_only=false")


def _scaled(images):
    return (images.float() / 255 - 0.5) / 0.25


def _loss(model, data, class_weights=None, amp=False):
    """Mean over the examples of weight times cross entropy; not divided by the weights."""
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        logits = model(_scaled(data.images))
    chances = logits.float().log_softmax(1)
    losses = -chances[torch.arange(len(data)), data.targets]
    if class_weights == "balanced":
        counts = torch.bincount(data.targets, minlength=2)
        class_weights = len(data) / (2 * counts)
    if class_weights is not None:
        losses = losses * torch.as_tensor(class_weights)[data.targets]
    return losses.mean()


def _gradient(model, vector, data, **loss):
    vector_to_parameters(vector.clone(), model.parameters())
    model.train()
    return parameters_to_vector(torch.autograd.grad(_loss(model, data, **loss), list(model.parameters())))


def _descend(model, start, data, rates, *, mu=0.0, longest=math.inf, **loss):
    """Gradient descent from ``start``, one step a rate, with FedProx's pull and a longest gradient."""
    vector = start
    for rate in rates:
        gradient = _gradient(model, vector, data, **loss) + mu * (vector - start)
        gradient = gradient * min(1.0, longest / float(gradient.norm()))
        vector = vector - rate * gradient
    return vector


def _federate(model, start, sites, rates, *, equal=False, bound=math.inf, server=None, **descend):
    """Rounds of FedAvg: ``rates`` has one list of step sizes a round."""
    sizes = torch.tensor([1.0 if equal else len(site.train) for site in sites])
    vector, velocity = start, torch.zeros_like(start)
    for steps in rates:
        moves = [_descend(model, vector, site.train, steps, **descend) - vector for site in sites]
        moves = [move * min(1.0, bound / float(move.norm())) for move in moves]
        mean = sum(share * move for share, move in zip(sizes / sizes.sum(), moves, strict=True))
        velocity = (server[1] if server else 0.0) * velocity + mean
        vector = vector + (server[0] if server else 1.0) * velocity
    return vector


def _fed_sgd(model, start, sites, rates, *, momentum):
    sizes = torch.tensor([float(len(site.train)) for site in sites])
    vector, velocity = start, torch.zeros_like(start)
    for rate in rates:
        gradients = [_gradient(model, vector, site.train) for site in sites]
        mean = sum(share * gradient for share, gradient in zip(sizes / sizes.sum(), gradients, strict=True))
        velocity = momentum * velocity + mean
        vector = vector - rate * velocity
    return vector


def _cosine(steps):
    return [LR * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]


def _by_round(rates):
    return [rates[start : start + 2] for start in range(0, len(rates), 2)]


def _beginning(plan):
    """The data, a model to compute with, and the plan's first weights."""
    torch.set_num_threads(1)
    prepared = prepare(plan)
    model = build_model(plan, prepared.input_shape, prepared.num_classes)
    return prepared, model, parameters_to_vector(model.parameters()).detach()


def _stored(model, path):
    model.load_state_dict(load_file(path))
    return parameters_to_vector(model.parameters()).detach()


def _assert_same(model, path, wanted, start):
    """Equal up to rounding, on the scale of how far the training went."""
    got = _stored(model, path)
    went = float((wanted - start).norm())
    assert went > 0.01
    assert float((got - wanted).norm()) < 1e-3 * went


CONSTANT = [[LR, LR]] * ROUNDS
SERVER = "server={kind='sgd', lr=0.5, momentum=0.9}"


@pytest.mark.parametrize(
    ("settings", "rates", "how"),
    [
        pytest.param((), CONSTANT, {}, id="size"),
        pytest.param(("federation.weighting='equal'",), CONSTANT, {"equal": True}, id="equal"),
        pytest.param(
            ("federation.algorithm={kind='fedprox', mu=2.0, local_epochs=2}",), CONSTANT, {"mu": 2.0}, id="fedprox"
        ),
        pytest.param(
            ("training.schedule={kind='cosine'}",), _by_round(_cosine(2 * ROUNDS)), {}, id="schedule of the sites"
        ),
        pytest.param(
            ("training.class_weights=[1.0, 4.0]",), CONSTANT, {"class_weights": [1.0, 4.0]}, id="class weights"
        ),
        pytest.param(
            ("training.class_weights='balanced'",), CONSTANT, {"class_weights": "balanced"}, id="balanced classes"
        ),
        pytest.param(("training.max_grad_norm=0.05",), CONSTANT, {"longest": 0.05}, id="gradient norm"),
        pytest.param(
            ("privacy.stages=[{kind='norm_bound', l2_norm=0.02}]",), CONSTANT, {"bound": 0.02}, id="privacy stage"
        ),
        pytest.param(
            ("privacy.stages=[{kind='norm_bound', l2_norm=0.02}]", "federation.weighting='equal'"),
            CONSTANT,
            {"bound": 0.02, "equal": True},
            id="privacy stage, equal",
        ),
        pytest.param(
            (f"federation.algorithm={{kind='fedavg', local_epochs=2, {SERVER}}}",),
            CONSTANT,
            {"server": (0.5, 0.9)},
            id="server with momentum",
        ),
        pytest.param(
            (
                f"federation.algorithm={{kind='fedavg', local_epochs=2, {SERVER}}}",
                "training.schedule={kind='cosine'}",
            ),
            _by_round(_cosine(2 * ROUNDS)),
            {"server": (0.5, 0.9)},
            id="the schedule is the sites', not the server's",
        ),
    ],
)
def test_federated_training_is_what_the_plan_says(small_plan, tmp_path, settings, rates, how):
    plan = small_plan(*PLAIN, *ONLY_FEDERATED, *settings)
    record = train(plan, tmp_path / "run")
    prepared, model, start = _beginning(plan)
    assert len(prepared.sites[0].train) > len(prepared.sites[1].train) + 10  # else size and equal are alike
    wanted = _federate(model, start, prepared.sites, rates, **how)
    _assert_same(model, tmp_path / "run" / "weights.safetensors", wanted, start)
    assert record["training"]["rounds_run"] == ROUNDS
    limited = [sentence for sentence in record["protection"]["active"] if "0.02" in sentence]
    assert bool(limited) == ("bound" in how)


def test_fedsgd_follows_schedule_and_momentum(small_plan, tmp_path):
    plan = small_plan(
        *PLAIN,
        *ONLY_FEDERATED,
        "federation.algorithm={kind='fedsgd'}",
        f"training.optimiser={{kind='sgd', lr={LR}, momentum=0.9}}",
        "training.schedule={kind='linear', final=0.1}",
    )
    train(plan, tmp_path / "run")
    prepared, model, start = _beginning(plan)
    rates = [LR * (1 - 0.9 * number / ROUNDS) for number in range(ROUNDS)]
    wanted = _fed_sgd(model, start, prepared.sites, rates, momentum=0.9)
    _assert_same(model, tmp_path / "run" / "weights.safetensors", wanted, start)


@pytest.mark.parametrize(
    ("settings", "pool_rates", "site_rates", "how"),
    [
        pytest.param((), [LR] * 6, [LR] * 6, {}, id="epochs"),
        pytest.param(
            ("federation.algorithm={kind='fedavg', local_steps=2}",), [LR] * 12, [LR] * 6, {}, id="steps of all sites"
        ),
        pytest.param(("federation.algorithm={kind='fedsgd'}",), [LR] * 6, [LR] * 3, {}, id="fedsgd"),
        pytest.param(("training.schedule={kind='cosine'}",), _cosine(6), _cosine(6), {}, id="schedule"),
        pytest.param(
            ("training.class_weights='balanced'",),
            [LR] * 6,
            [LR] * 6,
            {"class_weights": "balanced"},
            id="balanced classes",
        ),
    ],
)
def test_references_train_on_the_pool_and_on_own_data(small_plan, tmp_path, settings, pool_rates, site_rates, how):
    plan = small_plan(*PLAIN, *settings)
    train(plan, tmp_path / "run")
    prepared, model, start = _beginning(plan)
    pool = _Pooled([site.train for site in prepared.sites])
    wanted = {"central": _descend(model, start, pool, pool_rates, **how)}
    for site in prepared.sites:
        wanted[f"local_only-{site.name}"] = _descend(model, start, site.train, site_rates, **how)
    assert len(wanted) == 3
    for name, vector in wanted.items():
        _assert_same(model, tmp_path / "run" / "references" / f"{name}.safetensors", vector, start)


class _Pooled:
    """Images and targets of several parties, one after the other."""

    def __init__(self, parts):
        self.images = torch.cat([part.images for part in parts])
        self.targets = torch.cat([part.targets for part in parts])

    def __len__(self):
        return len(self.targets)


def test_mixed_precision_is_used_where_the_plan_asks(small_plan, tmp_path):
    """bfloat16 rounds to three digits: far nearer to a bfloat16 loop than to a float32 one, and the reverse."""
    gaps = {}
    for amp in ("off", "bf16"):
        plan = small_plan(*PLAIN, f"training.amp='{amp}'", "references.local_only=false")
        train(plan, tmp_path / amp)
        prepared, model, start = _beginning(plan)
        pool = _Pooled([site.train for site in prepared.sites])
        for arm, file in (("federated", "weights"), ("central", "references/central")):
            got = _stored(model, tmp_path / amp / f"{file}.safetensors")
            for loop in (False, True):
                if arm == "federated":
                    wanted = _federate(model, start, prepared.sites, CONSTANT, amp=loop)
                else:
                    wanted = _descend(model, start, pool, [LR] * 6, amp=loop)
                gaps[arm, amp, loop] = float((got - wanted).norm())
    for arm in ("federated", "central"):
        assert gaps[arm, "off", False] < 0.1 * gaps[arm, "off", True]
        assert gaps[arm, "bf16", True] < 0.5 * gaps[arm, "bf16", False]


def test_running_statistics_are_averaged_by_size(small_plan, tmp_path):
    arguments = "in_shape=[1,16,16], classes=2, channels=[4,8], strides=[2,2], norm='BATCH'"
    plan = small_plan(
        *PLAIN,
        *ONLY_FEDERATED,
        "model={kind='monai', name='Classifier', arguments={" + arguments + "}}",
        "federation.buffers='average'",
    )
    train(plan, tmp_path / "run")
    prepared, model, start = _beginning(plan)
    sizes = [len(site.train) for site in prepared.sites]
    names = [name for name, buffer in model.named_buffers() if buffer.dtype.is_floating_point]
    assert names
    vector, kept = start, {name: model.state_dict()[name].clone() for name in names}
    for rates in CONSTANT:
        moved, seen = [], []
        for site in prepared.sites:
            model.load_state_dict(kept, strict=False)
            moved.append(_descend(model, vector, site.train, rates))
            seen.append({name: model.state_dict()[name].clone() for name in names})
        vector = sum(size * move for size, move in zip(sizes, moved, strict=True)) / sum(sizes)
        kept = {
            name: sum(size * part[name] for size, part in zip(sizes, seen, strict=True)) / sum(sizes) for name in names
        }
    first = build_model(plan, prepared.input_shape, 2).state_dict()
    stored = load_file(tmp_path / "run" / "weights.safetensors")
    for name in names:
        assert not torch.allclose(kept[name], first[name], atol=1e-2)
        torch.testing.assert_close(stored[name], kept[name], rtol=1e-3, atol=1e-5)
    _assert_same(model, tmp_path / "run" / "weights.safetensors", vector, start)


def _rows(folder, arm):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["arm"] == arm]


@pytest.mark.parametrize("select", ["best", "last"])
def test_the_weights_kept_are_those_of_the_round_that_the_plan_selects(small_plan, tmp_path, select):
    plan = small_plan(
        *PLAIN,
        "references.local_only=false",
        "training.optimiser={kind='sgd', lr=0.3, momentum=0.9}",
        f"federation={{rounds=8, algorithm={{kind='fedsgd'}}, select='{select}', select_metric='loss'}}",
    )
    record = train(plan, tmp_path / "run")
    prepared, model, _ = _beginning(plan)
    validation = _Pooled([site.validation for site in prepared.sites])
    for arm, file in (("federated", "weights"), ("central", "references/central")):
        losses = [row["validation"]["loss"] for row in _rows(tmp_path / "run", arm)]
        assert min(losses) < losses[-1] - 0.01  # else best and last are alike
        _stored(model, tmp_path / "run" / f"{file}.safetensors")
        with torch.no_grad():
            got = float(_loss(model.eval(), validation))
        assert got == pytest.approx({"best": min(losses), "last": losses[-1]}[select], rel=1e-4)
    federated = [row["validation"]["loss"] for row in _rows(tmp_path / "run", "federated")]
    assert record["training"]["best_round"] == 1 + federated.index(min(federated))
    assert record["training"]["selected"] == select
