"""How a comparison derives its arms, what it says against whom, and what its table and figure hold."""

import csv
import json
import math
from xml.etree import ElementTree as ET

import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from PIL import Image

from medveil.errors import ConfigError, GuaranteeError
from medveil.federation.secure.settings import SecureAggregation
from medveil.report.compare import write_figure
from medveil.study.compare import compare, compare_cells
from medveil.study.compare_plan import Request, arm_plan, default_arms, find_arms
from medveil.study.compare_result import ArmRow, Comparison, may_vanish
from medveil.study.compare_table import csv_table, markdown, to_json
from medveil.study.epsilon_grid import grid_cells
from medveil.study.grid_result import spread
from medveil.study.grid_runs import GridRun
from medveil.study.grid_spending import Spending
from medveil.study.plan import load_plan
from medveil.study.privacy import bind_plan, privacy_part

PLAN = """
name = "shared noise"
task = "classification"
seed = 7
[data]
source = { kind = "phantom", task = "classification", subjects = 90, size = [16, 16], scanners = 3 }
partition = { kind = "iid", sites = 5 }
splits = { kind = "random", test = 0.3, validation = 0.15 }
[model]
kind = "cnn"
[federation]
rounds = 20
algorithm = { kind = "fedsgd" }
weighting = "equal"
validate_every = 10
ema = 0.9
min_sites = 3
[training]
optimiser = { kind = "sgd", lr = 1.0, momentum = 0.9 }
[references]
central = false
local_only = false
[privacy]
unit = "image"
relation = "add-remove"
delta = 1e-4
trusted = "nobody"
held_out = "public"
[privacy.secure_aggregation]
colluding = 1
dropouts = 1
[privacy.dp]
kind = "distributed"
sampling = { rate = 0.1, nominal_units = 1000 }
clipping = { kind = "flat", l2_clip_norm = 1.5 }
noise = { epsilon = 4.0 }
views = 2
"""
DEFAULT = ("central-dp", "distributed-dp-t0", "distributed-dp-t1", "local-dp", "secure-sum", "federated")


@pytest.fixture
def plan_of(tmp_path):
    def make(*overrides):
        path = tmp_path / "plan.toml"
        path.write_text(PLAN, encoding="utf-8")
        return load_plan(path, overrides)

    return make


def _arm(plan, name, **settings):
    (arm,) = find_arms([name])
    epsilon = 4.0 if arm.private else None
    return arm_plan(arm, plan, Request(epsilon, 3, **settings))


def _leaves(value, path=""):
    if not isinstance(value, dict):
        return {path: value}
    return {key: leaf for name, below in value.items() for key, leaf in _leaves(below, f"{path}.{name}").items()}


def _changed(one, two):
    before, after = _leaves(one.model_dump(mode="json")), _leaves(two.model_dump(mode="json"))
    return {key.lstrip(".") for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


SECURE = {f"privacy.secure_aggregation.{name}" for name in SecureAggregation.model_fields} | {
    "privacy.secure_aggregation"
}
CHANGES = {
    "central-dp": {"name", "seed", "privacy.dp.kind", "privacy.trusted", "federation.min_sites"},
    "distributed-dp-t0": {"name", "seed", "privacy.secure_aggregation.colluding"},
    "distributed-dp-t1": {"name", "seed"},
    "local-dp": {"name", "seed", "privacy.dp.kind"}
    | {f"federation.{key}" for key in ("rounds", "validate_every", "ema")}
    | {f"federation.algorithm.{key}" for key in ("kind", "local_steps")},
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_arm_changes_trust_and_nothing_else(plan_of, name):
    plan = plan_of()
    changed = _changed(plan, _arm(plan, name))
    # A table that is gone takes its keys along.
    assert changed - SECURE == CHANGES[name] - SECURE
    assert bool(changed & SECURE) == (name != "distributed-dp-t1")
    assert (changed & SECURE == CHANGES[name] & SECURE) == name.startswith("distributed")


@pytest.mark.parametrize("name", CHANGES)
def test_every_private_arm_can_be_bound_and_costs_the_same(plan_of, name):
    bound = bind_plan(_arm(plan_of(), name))
    assert bound.total().epsilon == pytest.approx(4.0, rel=0.01)
    assert bound.steps == 20


def test_noise_is_shared_out_for_the_colluding_sites_of_the_arm(plan_of):
    shares = [bind_plan(_arm(plan_of(), f"distributed-dp-t{number}")).shares for number in (0, 1)]
    assert [(one.sites, one.tolerated, one.absent) for one in shares] == [(5, 0, 1), (5, 1, 1)]


def test_dropouts_that_are_not_stated_follow_each_arms_threshold(plan_of):
    """Five sites: more than half of 5 + t are needed, so 2 may vanish with t = 0 and 1 with t = 1."""
    plan = plan_of("privacy.secure_aggregation={colluding=1}")
    absent = [bind_plan(_arm(plan, f"distributed-dp-t{number}")).shares.absent for number in (0, 1)]
    assert absent == [2, 1]
    assert [may_vanish(_arm(plan, f"distributed-dp-t{number}"), 5) for number in (0, 1)] == [2, 1]


def test_a_threshold_for_other_colluding_sites_is_not_taken_over(plan_of):
    plan = plan_of("privacy.secure_aggregation={colluding=0, dropouts=1, threshold=3}")
    assert _arm(plan, "distributed-dp-t0").privacy.secure_aggregation.threshold == 3
    assert bind_plan(_arm(plan, "distributed-dp-t1")) is not None


def test_more_dropouts_than_an_arm_can_bear_are_refused_not_lowered(plan_of):
    plan = plan_of("privacy.secure_aggregation={colluding=0, dropouts=2}")
    assert bind_plan(_arm(plan, "distributed-dp-t0")).shares.absent == 2
    with pytest.raises(GuaranteeError, match="threshold"):
        bind_plan(_arm(plan, "distributed-dp-t1"))


def test_local_rounds_have_as_many_steps_and_keep_their_pace(plan_of):
    federation = _arm(plan_of(), "local-dp").federation
    assert (federation.algorithm.kind, federation.algorithm.local_steps, federation.rounds) == ("fedavg", 5, 4)
    assert (federation.validate_every, federation.ema) == (2, pytest.approx(0.9**5))
    assert _arm(plan_of(), "local-dp", local_steps=10).federation.rounds == 2
    assert _arm(plan_of("federation.validate_every=0"), "local-dp").federation.validate_every == 0
    with pytest.raises(ConfigError, match="divisor"):
        _arm(plan_of(), "local-dp", local_steps=3)


def test_arms_without_privacy_promise_nothing_and_keep_the_learning_rates_meaning(plan_of):
    summed, plain = _arm(plan_of(), "secure-sum"), _arm(plan_of(), "federated")
    for derived in (summed, plain):
        assert bind_plan(derived) is None
        assert derived.training.batch_size == 20  # a tenth of 1000, over five sites
        assert derived.training.max_grad_norm == 1.5
    assert plain.privacy.secure_aggregation is None
    assert summed.privacy.secure_aggregation.value_range == 1.5  # no coordinate is longer than the gradient
    assert (plain.references.central, plain.references.local_only) == (True, True)
    assert not summed.references.central
    assert not _arm(plan_of(), "federated", references=False).references.local_only


def test_the_default_arms_include_the_plans_own(plan_of):
    assert default_arms(plan_of()) == DEFAULT
    assert "distributed-dp-t2" in default_arms(plan_of("privacy.secure_aggregation.colluding=2"))


@pytest.mark.parametrize("wrong", ["distributed", "distributed-dp-t", "distributed-dp-t-1", "distributed-dp-t01", ""])
def test_arms_that_do_not_exist_are_refused(wrong):
    with pytest.raises(ConfigError, match="no such arm"):
        find_arms([wrong])


def test_only_distributed_plans_can_be_compared(plan_of, tmp_path):
    central = plan_of("privacy.dp.kind=central", "privacy.trusted=curator", "privacy.secure_aggregation={}")
    for plan in (central, load_plan("phantom")):
        with pytest.raises(ConfigError, match="distributed"):
            compare(plan, tmp_path / "out")
    with pytest.raises(ConfigError, match="noise multiplier"):
        compare(plan_of("privacy.dp.noise={multiplier=1.0}"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"arms": ()}, "arms"),
        ({"arms": ("federated", "federated")}, "federated twice"),
        ({"epsilons": (2.0, 2.0)}, "2.0 twice"),
        ({"epsilons": (-2.0,)}, "epsilon"),
        ({"seeds": (1, 1)}, "1 twice"),
    ],
)
def test_lists_that_make_no_comparison_are_refused(plan_of, tmp_path, settings, expected):
    with pytest.raises(ConfigError, match=expected):
        compare(plan_of(), tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_settings_of_one_epsilon_reach_the_arms_of_that_epsilon_only(plan_of, tmp_path):
    plan, slow, plain = (plan_of(f"training.optimiser.lr={lr}") for lr in (1.0, 0.2, 0.5))
    arms = find_arms(["central-dp", "federated"])
    cells = compare_cells(plan, tmp_path, arms, [1.0, 4.0], [1], at={1.0: slow, None: plain})
    rates = {(arm.name, cell.epsilon): cell.plan.training.optimiser.lr for arm, cell in cells}
    assert rates == {("central-dp", 1.0): 0.2, ("central-dp", 4.0): 1.0, ("federated", None): 0.5}
    with pytest.raises(ConfigError, match="does not have"):
        compare_cells(plan, tmp_path, arms, [4.0], [1], at={1.0: slow})


def test_a_grid_takes_a_distributed_plan(plan_of, tmp_path):
    private, none = grid_cells([plan_of()], tmp_path, [2.0, None], [1])
    assert (private.mode, none.mode) == ("distributed", "distributed")
    assert bind_plan(private.plan).total().epsilon == pytest.approx(2.0, rel=0.01)
    assert bind_plan(none.plan) is None
    assert none.plan.privacy.secure_aggregation is None


# Against whom


def test_a_site_that_is_not_tolerated_subtracts_its_own_noise(plan_of):
    """Four of five sites make up the noise (one may vanish); one of them knows its share, so three quarters are left.

    The expectation adds variances by hand and asks Google's accountant about the mechanism that is left.
    """
    plan = _arm(plan_of(), "distributed-dp-t0")
    bound = bind_plan(plan)
    left = bound.noise_multiplier * math.sqrt(3 / 4)
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(PoissonSampledDpEvent(0.1, GaussianDpEvent(left)), bound.steps)
    claim = privacy_part(plan, bound)
    assert claim["epsilon_insider"] == pytest.approx(accountant.get_epsilon(1e-4), rel=0.01)
    assert claim["epsilon_server"] == pytest.approx(claim["epsilon"])
    assert claim["epsilon_insider"] > 1.1 * claim["epsilon"]


def test_two_sites_without_tolerance_hide_little_from_each_other(plan_of):
    plan = plan_of(
        "data.partition.sites=2", "federation.min_sites=0", "privacy.secure_aggregation={colluding=0, dropouts=0}"
    )
    bound = bind_plan(plan)
    assert privacy_part(plan, bound)["epsilon_insider"] > 1.2 * bound.total().epsilon


def test_how_many_sites_may_vanish(plan_of):
    plan = plan_of()
    found = {name: may_vanish(_arm(plan, name), 5) for name in DEFAULT}
    assert found == {
        "central-dp": None,
        "distributed-dp-t0": 1,
        "distributed-dp-t1": 1,
        "local-dp": 2,
        "secure-sum": 1,
        "federated": 2,
    }
    assert may_vanish(_arm(plan_of("federation.min_sites=0"), "federated"), 5) == 0
    assert may_vanish(_arm(plan_of("federation.min_sites=5"), "secure-sum"), 5) == 0


# Tables and figure


def _row(arm, values, **facts):
    claim = {"epsilon": 4.0, "epsilon_server": 3.5, "epsilon_insider": 4.0, "delta": 1e-4}
    empty = dict.fromkeys(claim)
    spreads = {"auc": spread(values), "balanced_accuracy": spread(values)}
    base = {
        "title": arm.title(),
        "trusted": "a|b",
        "stamp": None,
        "dropouts": 1,
        "rounds": 20,
        "bytes_sent_per_site": 1_234_567,
        "seconds": 3.21,
        "seeds": tuple(range(1, len(values) + 1)),
        "failed": {},
    }
    return ArmRow(arm=arm, metrics=spreads, **{**base, **(claim if arm.startswith("dp") else empty), **facts})


def _comparison(*rows, **facts):
    runs = tuple(
        GridRun(row.arm, "distributed", row.epsilon, seed, f"{row.arm}/eps/seed", metrics={"auc": 0.8})
        for row in rows
        for seed in row.seeds
    )
    values = {"dropouts_stated": True, **facts}
    return Comparison("plan", "ab" * 32, "classification", rows, runs, Spending((), 0, 0), **values)


FOUND = _comparison(
    _row("dp-one", [0.7, 0.8]),
    _row("dp-two", [], failed={1: "It diverged."}),
    _row("dp-three", [0.9], stamp="NOT PRIVATE", epsilon_insider=None),
    _row("plain", [0.95]),
    _row("pooled", [0.97], dropouts=None, rounds=None, bytes_sent_per_site=None, seconds=None),
)


def test_the_tables_read_back():
    lines = {line["arm"]: line for line in csv.DictReader(csv_table(FOUND).splitlines())}
    assert float(lines["dp-one"]["auc_mean"]) == 0.75
    assert (lines["dp-one"]["epsilon_server"], lines["dp-three"]["epsilon_insider"]) == ("3.5", "none")
    assert (lines["plain"]["epsilon_server"], lines["pooled"]["bytes_sent_per_site"]) == ("none", "")
    content = json.loads(json.dumps(to_json(FOUND), allow_nan=False))
    assert content["plan_hash"] == "ab" * 32
    assert [row["arm"] for row in content["rows"]] == ["dp-one", "dp-two", "dp-three", "plain", "pooled"]
    assert content["rows"][0]["bytes_sent_per_site"] == 1_234_567
    assert content["rows"][1]["failed"] == {"1": "It diverged."}
    text = markdown(FOUND)
    (line,) = [line for line in text.splitlines() if line.startswith("| Dp-One")]
    expected = "| Dp-One | 0.750 ± 0.071 (0.700 to 0.800) | 4 | 3.5 | 4 | a\\|b | 1 | 20 | 1.23 MB | 3.21 | 2 |"
    assert line == expected
    assert "- Dp-Two, epsilon 4, seed 1: It diverged." in text
    assert "4 (NOT PRIVATE)" in text
    assert '"pooled" takes a step on all data' in text
    assert '"pooled" takes' not in markdown(_comparison(*FOUND.rows[:4]))


def test_the_table_says_where_the_number_of_dropouts_comes_from():
    assert "The plan says how many sites may vanish" in markdown(FOUND)
    assert "for as many as its threshold allows" in markdown(_comparison(*FOUND.rows, dropouts_stated=False))
    assert "settings of their own: 4, none" in markdown(_comparison(*FOUND.rows, own_settings=("4", "none")))


def test_the_figure_has_a_line_for_every_arm_that_finished(tmp_path):
    png, svg = write_figure(FOUND, tmp_path)
    with Image.open(png) as image:
        assert image.size == (1480, round((1.0 + 0.42 * 4) * 200))
    words = " ".join("".join(ET.parse(svg).getroot().itertext()).split())
    for word in (
        "Dp-One",
        "Dp-Three (NOT PRIVATE)",
        "Plain",
        "Pooled",
        "3.5 / 4",
        "none / none",
        "AUC on the test set",
    ):
        assert word in words
    assert "Dp-Two" not in words
    first = [path.read_bytes() for path in (png, svg)]
    assert [path.read_bytes() for path in write_figure(FOUND, tmp_path)] == first
