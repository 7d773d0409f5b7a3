"""How a grid derives its plans, adds up what its runs cost, and writes its tables and figure."""

import csv
import json
import math
from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image
from scipy.optimize import brentq
from scipy.stats import norm

from medveil.errors import ConfigError
from medveil.report.epsilon_grid import write_figure
from medveil.study import grid_plan
from medveil.study.epsilon_grid import epsilon_grid, epsilon_name, grid_cells
from medveil.study.grid_plan import at_epsilon, mean_images, private_batch, without_privacy
from medveil.study.grid_result import Grid, Spread, rows_of
from medveil.study.grid_runs import GridRun
from medveil.study.grid_spending import Spending, composed
from medveil.study.grid_table import csv_table, markdown, to_json
from medveil.study.plan import load_plan
from medveil.study.privacy import bind_plan

PLAN = """
name = "central"
task = "classification"
seed = 7
[data]
source = { kind = "phantom", task = "classification", subjects = 90, size = [16, 16], scanners = 3 }
partition = { kind = "iid", sites = 4 }
splits = { kind = "random", test = 0.3, validation = 0.15 }
[model]
kind = "cnn"
[federation]
rounds = 10
algorithm = { kind = "fedsgd" }
weighting = "equal"
validate_every = 5
ema = 0.9
[training]
batch_size = 48
optimiser = { kind = "sgd", lr = 1.0, momentum = 0.9 }
[references]
central = true
local_only = false
[privacy]
unit = "image"
relation = "add-remove"
delta = 1e-4
trusted = "curator"
held_out = "public"
overrides = ["unprotected-references"]
stages = [{ kind = "norm_bound", l2_norm = 3.0 }]
[privacy.dp]
kind = "central"
sampling = { rate = 0.1, nominal_units = 1000 }
clipping = { kind = "flat", l2_clip_norm = 0.7 }
noise = { multiplier = 1.5, generator = "seeded" }
"""
SITE = """kind = "site"
clipping = { kind = "flat", l2_clip_norm = 0.2 }
noise = { multiplier = 5.0 }
nominal_sites = 4
"""


@pytest.fixture
def plan_of(tmp_path):
    def make(text=PLAN, *overrides):
        path = tmp_path / "plan.toml"
        path.write_text(text, encoding="utf-8")
        return load_plan(path, overrides)

    return make


def _leaves(value, path=""):
    """Every setting by its dotted key."""
    if not isinstance(value, dict):
        return {path: value}
    found = {}
    for key, below in value.items():
        found |= _leaves(below, f"{path}.{key}".lstrip("."))
    return found


def _changed(one, two):
    before, after = _leaves(one.model_dump(mode="json")), _leaves(two.model_dump(mode="json"))
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


def test_an_epsilon_replaces_the_noise_and_the_seed_only(plan_of):
    plan = plan_of()
    derived = at_epsilon(plan, 2.0, 5)
    assert _changed(plan, derived) == {"seed", "privacy.dp.noise.epsilon", "privacy.dp.noise.multiplier"}
    assert (derived.seed, derived.privacy.dp.noise.epsilon, derived.privacy.dp.noise.multiplier) == (5, 2.0, None)
    assert derived.privacy.dp.noise.generator == "seeded"  # a debugging plan's runs stay stamped
    assert derived.root == plan.root
    assert bind_plan(derived).total().epsilon == pytest.approx(2.0, rel=0.01)


def test_none_drops_the_privacy_table_and_keeps_what_the_learning_rate_means(plan_of):
    plan = plan_of()
    derived = without_privacy(plan, 5, batch_size=private_batch(plan))
    assert bind_plan(derived) is None
    outside = {key for key in _changed(plan, derived) if not key.startswith("privacy.")}
    assert outside - {"privacy"} == {
        "seed",
        "references.central",
        "training.batch_size",
        "training.max_grad_norm",
    }
    assert derived.privacy.model_dump(exclude_defaults=True) == {}
    assert derived.training.batch_size == 25  # a tenth of 1000, over four sites
    assert derived.training.max_grad_norm == 0.7
    assert not derived.references.central
    assert derived.federation == plan.federation


def test_none_keeps_a_tighter_gradient_bound(plan_of):
    plan = plan_of(PLAN, "training.max_grad_norm=0.3")
    assert without_privacy(plan, 1, batch_size=8).training.max_grad_norm == 0.3


def test_none_of_a_site_plan_keeps_the_sites_own_batches(plan_of):
    text = PLAN[: PLAN.index("[privacy.dp]")] + "[privacy.dp]\n" + SITE
    plan = plan_of(
        text, "privacy.unit=site", "privacy.trusted=server", "federation.algorithm={local_epochs=1, kind='fedavg'}"
    )
    derived = without_privacy(plan, plan.seed, batch_size=private_batch(plan))
    assert derived.training == plan.training
    assert derived.privacy.dp is None


LOCAL = ("privacy.dp.kind=local", "privacy.trusted=nobody", "federation.algorithm={kind='fedavg', local_steps=2}")


@pytest.mark.parametrize(
    ("settings", "batch"),
    [
        ((), 25),
        (LOCAL, 25),
        ((*LOCAL, "privacy.dp.sampling.nominal_units={a=100, b=300, c=200, d=400}"), 25),
        (("privacy.dp.sampling.rate=0.0001",), 1),
        (("privacy.dp.sampling.rate=0.0501",), 13),
    ],
)
def test_a_batch_is_what_a_private_step_expects(plan_of, settings, batch, monkeypatch):
    monkeypatch.setattr(grid_plan, "prepare", lambda _plan: pytest.fail("the plan says it all: no data is read"))
    assert private_batch(plan_of(PLAN, *settings)) == batch


def test_where_the_plan_does_not_say_the_data_do(plan_of, monkeypatch):
    """Natural sites are counted; so are a patient's images."""
    natural = plan_of(PLAN, "data.partition={kind='natural', column='scanner'}")
    assert private_batch(natural) == 33  # three scanners
    monkeypatch.setattr(grid_plan, "mean_images", lambda _subject, limit: {2: 1.6, None: 2.4}[limit])
    assert private_batch(plan_of(PLAN, "privacy.unit=patient")) == 60
    assert private_batch(plan_of(PLAN, "privacy.unit=patient", "privacy.dp.sampling.max_images=2")) == 40


def test_images_of_a_patient_are_counted_up_to_the_limit():
    owners = np.repeat(np.arange(4), [1, 2, 5, 8])
    assert mean_images(owners, None) == 4.0
    assert mean_images(owners, 3) == (1 + 2 + 3 + 3) / 4
    assert mean_images(owners, 100) == 4.0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"epsilons": ()}, "epsilons"),
        ({"epsilons": (1.0, 2.0, 1.0)}, "1.0 twice"),
        ({"epsilons": (-1.0,)}, "epsilon"),
        ({"epsilons": (math.inf,)}, "epsilon"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": (2, 2)}, "2 twice"),
    ],
)
def test_lists_that_make_no_grid_are_refused(plan_of, tmp_path, settings, expected):
    with pytest.raises(ConfigError) as caught:
        epsilon_grid([plan_of()], tmp_path / "grid", **{"epsilons": (1.0,), "seeds": (1,), **settings})
    assert expected in str(caught.value)
    assert not (tmp_path / "grid").exists()


def test_plans_that_make_no_grid_are_refused(plan_of, tmp_path):
    plan, unprotected = plan_of(), plan_of(PLAN[: PLAN.index("[privacy]")] + "[privacy]\n")
    masks = plan.model_copy(update={"name": "masks", "task": "segmentation"})
    for plans, expected in (([], "plans"), ([plan, plan], "central twice"), ([plan, masks], "one task")):
        with pytest.raises(ConfigError, match=expected):
            epsilon_grid(plans, tmp_path / "grid")
    with pytest.raises(ConfigError, match="promises no differential privacy"):
        epsilon_grid([unprotected], tmp_path / "grid")
    assert not (tmp_path / "grid").exists()


def test_no_two_epsilons_share_a_folder():
    assert [epsilon_name(value) for value in (1, 1.0, 0.5, 1e-7, None)] == ["1", "1", "0.5", "1e-07", "none"]
    assert epsilon_name(1.0000001) != epsilon_name(1.0)


# What runs cost together


def _finished(out, number, privacy, dataset="scans"):
    folder = out / "plan" / f"eps-{number}" / "seed-1"
    folder.mkdir(parents=True)
    for name in ("plan.json", "manifest.json"):
        (folder / name).write_text("{}")
    (folder / "record.json").write_text(json.dumps({"privacy": privacy, "data": {"name": dataset}}))


def _claim(multiplier, *earlier, **changes):
    events = [("training", multiplier), *((f"earlier {index}", sigma) for index, sigma in enumerate(earlier))]
    parts = [{"what": what, "event": {"kind": "gaussian", "noise_multiplier": sigma}} for what, sigma in events]
    return {"unit": "patient", "relation": "add-remove", "delta": 1e-5, "composition": parts, **changes}


def _gaussian_epsilon(*multipliers, delta=1e-5):
    """Balle & Wang 2018, arXiv 1805.06530, Theorem 8; Gaussian mechanisms compose by adding squares of 1/sigma."""
    mu = math.sqrt(sum(sigma**-2 for sigma in multipliers))

    def excess(epsilon):
        upper, lower = norm.cdf(mu / 2 - epsilon / mu), norm.logcdf(-mu / 2 - epsilon / mu)
        return upper - math.exp(epsilon + lower) - delta

    return brentq(excess, 0, 100)


def test_runs_on_the_same_patients_are_added_up(tmp_path):
    multipliers = (1.0, 2.0, 3.0, 0.9)
    for number, sigma in enumerate(multipliers):
        _finished(tmp_path, number, _claim(sigma))
    (together,) = composed(tmp_path, None).together
    assert together.runs == 4
    exact = _gaussian_epsilon(*multipliers)
    assert exact <= together.epsilon <= exact * 1.01
    assert together.epsilon > 1.2 * _gaussian_epsilon(min(multipliers))


def test_what_went_before_is_counted_once_for_the_runs_that_say_the_same(tmp_path):
    _finished(tmp_path, 1, _claim(1.0, 2.0, 2.0))
    _finished(tmp_path, 2, _claim(1.0, 2.0, 2.0))
    _finished(tmp_path, 3, _claim(1.0, 1.5))
    exact = _gaussian_epsilon(1.0, 1.0, 1.0, 2.0, 2.0, 1.5)
    assert exact <= composed(tmp_path, None).together[0].epsilon <= exact * 1.01


def test_other_data_and_units_are_added_up_apart(tmp_path):
    _finished(tmp_path, 1, _claim(1.0))
    _finished(tmp_path, 2, _claim(1.0, unit="site"))
    _finished(tmp_path, 3, _claim(1.0), dataset="others")
    _finished(tmp_path, 4, None)
    begun = tmp_path / "plan" / "eps-5" / "seed-1"
    begun.mkdir(parents=True)
    (begun / "plan.json").write_text("{}")
    spending = composed(tmp_path, None)
    assert [(one.dataset, one.unit, one.runs) for one in spending.together] == [
        ("others", "patient", 1),
        ("scans", "patient", 1),
        ("scans", "site", 1),
    ]
    assert (spending.unprotected, spending.unfinished) == (1, 1)


# Tables and figure


def _run(plan, epsilon, seed, auc, **facts):
    values = {"metrics": None if auc is None else {"auc": auc, "balanced_accuracy": auc - 0.1}, **facts}
    if epsilon is not None and auc is not None:
        values = {"epsilon_reached": epsilon * 0.999, "noise_multiplier": 1.0, "delta": 1e-5, **values}
    return GridRun(plan, "central", epsilon, seed, f"{plan}/eps/seed", **values)


def _grid(*runs):
    return Grid("classification", runs, rows_of(runs, ("auc", "balanced_accuracy")), Spending((), 0, 0))


GRID = _grid(
    _run("a|b", 1.0, 1, 0.7),
    _run("a|b", 8.0, 1, 0.9, epsilon_reached=8.2, stamp="NOT PRIVATE"),
    _run("a|b", None, 1, 0.95),
    _run("a|b", 1.0, 2, 0.8),
    _run("a|b", 8.0, 2, None, failed="It diverged."),
    _run("a|b", None, 2, 0.97),
)


def test_rows_gather_seeds():
    one, eight, none = GRID.rows
    assert one.metrics["auc"] == Spread(0.75, pytest.approx(0.1 / math.sqrt(2)), 0.7, 0.8, 2)
    assert eight.metrics["auc"] == Spread(0.9, None, 0.9, 0.9, 1)
    assert (eight.seeds, eight.failed, eight.stamp, eight.epsilon_reached) == (
        (1,),
        {2: "It diverged."},
        "NOT PRIVATE",
        8.2,
    )
    assert (none.epsilon, none.epsilon_reached, none.noise_multiplier) == (None, None, None)


def test_a_metric_that_a_seed_does_not_define_is_left_out():
    grid = _grid(_run("a", 1.0, 1, 0.7), _run("a", 1.0, 2, 0.8, metrics={"auc": None, "balanced_accuracy": 0.6}))
    assert grid.rows[0].metrics["auc"].seeds == 1
    assert grid.rows[0].metrics["balanced_accuracy"].seeds == 2


def test_the_tables_read_back():
    lines = list(csv.DictReader(csv_table(GRID).splitlines()))
    assert [line["epsilon"] for line in lines] == ["1.0", "8.0", "none"]
    assert [line["failed"] for line in lines] == ["0", "1", "0"]
    assert float(lines[0]["auc_mean"]) == 0.75
    assert lines[1]["auc_sd"] == ""
    content = json.loads(json.dumps(to_json(GRID), allow_nan=False))
    assert content["rows"][1]["failed"] == {"2": "It diverged."}
    assert len(content["runs"]) == 6
    text = markdown(GRID)
    (line,) = [line for line in text.splitlines() if "NOT PRIVATE" in line]
    assert line.startswith("| a\\|b | central | 8 (NOT PRIVATE) | 8.2 |")
    assert "- a|b, epsilon 8, seed 2: It diverged." in text


def test_phantoms_are_said_to_be_phantoms():
    assert "Synthetic phantom images" not in markdown(GRID)
    assert "Synthetic phantom images" in markdown(_grid(_run("a", 1.0, 1, 0.7, phantom=True)))


GRIDS = {
    "all": GRID,
    "one point": _grid(_run("a", 3.0, 1, 0.7)),
    "none only": _grid(_run("a", None, 1, 0.7)),
    "a long name and a strange one": _grid(_run("x" * 100, 1.0, 1, 0.6), _run("$<&_", 1.0, 1, 0.7)),
    "one failed": _grid(_run("a", 1.0, 1, 0.6), _run("b", 1.0, 1, None, failed="It diverged.")),
    "no figure": _grid(_run("a", 1.0, 1, 0.6, metrics={"auc": None, "balanced_accuracy": 0.5})),
    "eight plans": _grid(
        *(_run(f"plan {number}", e, 1, 0.5 + number / 20) for number in range(8) for e in (1.0, None))
    ),
}


@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_can_be_drawn(tmp_path, name):
    png, svg = write_figure(GRIDS[name], tmp_path)
    with Image.open(png) as image:
        assert image.size == (1320, 880)
    assert ET.parse(svg).getroot().tag.endswith("svg")


def test_the_figure_shows_means_at_what_was_spent(tmp_path):
    """The drawn line of the plan: epsilon 1 and 8.2 on a log axis, AUC 0.75 and 0.9; "none" has a dashed level."""
    _, svg = write_figure(GRID, tmp_path)
    text = svg.read_text()
    words = " ".join("".join(ET.fromstring(text).itertext()).split())
    for word in ("AUC on the test set", "Epsilon of each run", "none", "a|b (NOT PRIVATE)"):
        assert word in words
    assert "stroke-dasharray" in text
    assert "http" not in text.split("<defs>", 1)[1]


def test_the_same_grid_has_the_same_bytes(tmp_path):
    first = [path.read_bytes() for path in write_figure(GRID, tmp_path)]
    assert [path.read_bytes() for path in write_figure(GRID, tmp_path)] == first


def test_an_epsilon_may_have_settings_of_its_own(tmp_path, plan_of):
    plan = plan_of(PLAN)
    slower = plan.model_copy(
        update={
            "training": plan.training.model_copy(
                update={"optimiser": plan.training.optimiser.model_copy(update={"lr": 0.01})}
            )
        }
    )
    cells = grid_cells([plan], tmp_path, [1.0, 3.0], [1], {1.0: [slower]})
    assert {cell.epsilon: cell.plan.training.optimiser.lr for cell in cells} == {
        1.0: 0.01,
        3.0: plan.training.optimiser.lr,
    }
    with pytest.raises(ConfigError, match="does not have"):
        grid_cells([plan], tmp_path, [3.0], [1], {1.0: [slower]})


def test_the_table_says_which_epsilons_have_settings_of_their_own():
    assert "same at every epsilon" in markdown(GRID)
    assert "settings of their own: 1, none" in markdown(replace(GRID, own_settings=("1", "none")))
