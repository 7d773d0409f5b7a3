"""Hostile sites: each attack does harm where nothing defends, honest sites stay as they are, tables say what is."""

import csv
import itertools
import json
from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny_plans
from medveil.errors import ConfigError, GuaranteeError, ResumeError
from medveil.federation.secure.settings import SecureAggregation
from medveil.federation.site import LocalResult
from medveil.federation.stages import NormBound, NormBoundStage, Pipeline
from medveil.report.robustness import write_figure
from medveil.study import robustness_runs
from medveil.study.plan import load_plan
from medveil.study.prepare import prepare
from medveil.study.robustness import Hostile, robustness
from medveil.study.robustness_attack import Attack, Hostility, Tampered, hostile_sites, poisoned, stamped
from medveil.study.robustness_plan import Defence, defended, hides_among
from medveil.study.robustness_runs import RobustnessRun
from medveil.study.robustness_table import Robustness, csv_table, markdown, rows_of, to_json
from tiny_plans import merged, without

PLAN = merged(
    without(tiny_plans.CLASSIFICATION, "[data.source]", "[model]"),
    """
name = "phantom-hostile"
seed = 1
[data]
partition = { kind = "iid", sites = 10 }
splits = { kind = "random", test = 0.25, validation = 0.1 }
[data.source]
kind = "phantom"
task = "classification"
subjects = 240
size = [16, 16]
difficulty = 0.1
[model]
kind = "scattering"
order = 1
positions = [4, 4]
[federation]
rounds = 5
algorithm = { kind = "fedavg", local_steps = 5 }
weighting = "equal"
validate_every = 0
[training]
batch_size = 16
view_pool = 1
optimiser = { kind = "sgd", lr = 0.3, momentum = 0.9 }
[performance]
workers = 1
""",
)
PRIVATE = merged(
    PLAN,
    tiny_plans.ALONE,
    tiny_plans.CLAIM,
    """
[federation]
algorithm = { kind = "fedsgd" }
[privacy]
trusted = "nobody"
[privacy.secure_aggregation]
colluding = 1
[privacy.dp]
kind = "distributed"
sampling = { rate = 0.5, nominal_units = 180 }
clipping = { kind = "flat", l2_clip_norm = 1.0 }
noise = { multiplier = 0.5, generator = "seeded" }
""",
)


@pytest.fixture(scope="module")
def plan_of(tmp_path_factory):
    def make(text=PLAN, *overrides):
        path = tmp_path_factory.mktemp("plan") / "plan.toml"
        path.write_text(text, encoding="utf-8")
        return load_plan(path, overrides)

    return make


@pytest.fixture(scope="module")
def study(plan_of, tmp_path_factory):
    """Three attackers of ten, where nothing defends and where sites obey a bound."""
    out = tmp_path_factory.mktemp("study")
    hostile = Hostile(fractions=(0.3,), scale=100.0)
    return robustness(plan_of(), out, settings=("sum", "site-bound-obeyed", "group-bound"), hostile=hostile), out


def _run(study, setting, attack):
    (run,) = [run for run in study.runs if (run.setting, run.attack) == (setting, attack)]
    return run


# Each attack has an effect where nothing defends


def test_without_attack_the_model_is_good_and_the_trigger_does_nothing(study):
    run = _run(study[0], "sum", "none")
    assert run.score > 0.9
    assert run.backdoor < 0.5
    assert run.hostile == 0


def test_sign_flip_slows_and_scaling_wrecks_or_the_run_ends(study):
    honest = _run(study[0], "sum", "none")
    assert _run(study[0], "sum", "sign-flip").score < honest.score - 0.02
    wild = _run(study[0], "sum", "scaling")
    assert wild.failed is not None or wild.score < honest.score - 0.2


def test_the_backdoor_works_where_nothing_defends(study):
    assert _run(study[0], "sum", "backdoor").backdoor > 0.7


def test_a_bound_that_is_obeyed_takes_away_most_of_the_scaling(study):
    obeyed = _run(study[0], "site-bound-obeyed", "none")
    assert _run(study[0], "site-bound-obeyed", "scaling").score > obeyed.score - 0.05


def test_a_bound_on_groups_refuses_scaled_ones_and_no_honest_one(study):
    assert _run(study[0], "group-bound", "none").refused_groups == 0
    scaled = _run(study[0], "group-bound", "scaling")
    assert scaled.refused_groups > 0 or "every group" in scaled.failed.lower()


def test_the_tables_lie_in_the_folder_and_the_figure_can_be_drawn(study):
    result, out = study
    table = json.loads((out / "table.json").read_text())
    assert len(table["rows"]) == len(result.rows) == 12
    assert len(list(csv.DictReader((out / "table.csv").read_text().splitlines()))) == 12
    assert "Groups weaken privacy" in (out / "table.md").read_text()
    png, svg = write_figure(result, out)
    assert png.stat().st_size > 1000
    assert "backdoor: success" in "".join(ET.parse(svg).getroot().itertext())


def test_finished_runs_are_used_again_and_other_ones_refused(study, plan_of, monkeypatch):
    result, out = study
    monkeypatch.setattr(robustness_runs, "train_federated", lambda _shop: pytest.fail("nothing is trained again"))
    settings, hostile = ("sum", "site-bound-obeyed", "group-bound"), Hostile(fractions=(0.3,), scale=100.0)
    assert robustness(plan_of(), out, settings=settings, hostile=hostile).runs == result.runs
    with pytest.raises(ResumeError):
        robustness(plan_of(PLAN, "federation.rounds=7"), out, settings=settings, hostile=hostile)
    with pytest.raises(ResumeError):
        robustness(plan_of(), out, hostile=replace(hostile, scale=3.0))


def test_an_interrupted_run_goes_on_and_ends_the_same(plan_of, tmp_path, monkeypatch):
    plan, hostile = plan_of(PLAN, "federation.rounds=3"), Hostile(attacks=("scaling",), fractions=(0.1,))
    whole = robustness(plan, tmp_path / "whole", settings=("sum",), hostile=hostile)
    original, seen = robustness_runs.Watched.train, []

    def broken(self, round_number, *rest):
        seen.append(round_number)
        if round_number == 3:
            raise KeyboardInterrupt
        return original(self, round_number, *rest)

    monkeypatch.setattr(robustness_runs.Watched, "train", broken)
    with pytest.raises(KeyboardInterrupt):
        robustness(plan, tmp_path / "parts", settings=("sum",), hostile=hostile)
    monkeypatch.setattr(
        robustness_runs.Watched,
        "train",
        lambda self, number, *rest: seen.append(number) or original(self, number, *rest),
    )
    seen.clear()
    assert robustness(plan, tmp_path / "parts", settings=("sum",), hostile=hostile).runs == whole.runs
    assert set(seen) == {3}


def test_distributed_privacy_and_its_comparison_run(plan_of, tmp_path):
    hostile = Hostile(attacks=("scaling",), fractions=(0.3,))
    found = robustness(
        plan_of(PLAN, "federation.rounds=1"),
        tmp_path / "study",
        settings=("dp", "dp-off"),
        hostile=hostile,
        private=plan_of(PRIVATE, "federation.rounds=4"),
    )
    private = _run(found, "dp", "scaling")
    assert private.failed is None
    assert private.epsilon > 0
    assert private.hides_among == 9  # ten, less the one that may side with the server
    assert _run(found, "dp-off", "scaling").epsilon is None
    assert private.score != _run(found, "dp", "none").score  # the noise is seeded: only the attack differs


# Honest sites are left untouched


class _Work:
    num_examples, num_validation = 5, 2

    def __init__(self, form, values):
        self.result = LocalResult(form, values, np.ones(1, np.float32), 0.3)

    def train(self, _round, _weights, _buffers):
        return self.result

    def validate(self, _weights, _buffers):
        return {"auc": 0.7}


def test_honest_sites_keep_their_very_work_and_stages():
    work, pipeline = _Work("mean", np.ones(2, np.float32)), Pipeline([NormBoundStage(NormBound(l2_norm=1.0))])
    hostility = Hostility(Attack("scaling"), {"site-1"})
    assert hostility("site-2", work, pipeline) == (work, pipeline)
    bad, stages = hostility("site-1", work, pipeline)
    assert bad is not work
    assert stages.stages == ()
    assert replace(hostility, obeys_stages=True)("site-1", work, pipeline)[1] is pipeline


@given(st.lists(st.floats(-8, 8, width=16), min_size=1, max_size=5), st.sampled_from([-1.0, 10.0, 1.0]))
def test_a_change_is_multiplied_whatever_its_form(values, factor):
    weights = np.linspace(-1, 1, len(values)).astype(np.float32)
    change = np.array(values, np.float32)
    mean = Tampered(_Work("mean", change), factor).train(1, weights, weights)
    assert mean.values == pytest.approx(factor * change)
    new = Tampered(_Work("weights", weights + change), factor).train(1, weights, weights)
    assert new.values - weights == pytest.approx(factor * change, abs=1e-4)
    grid = Tampered(_Work("grid", change.astype(np.int64)), factor).train(1, weights, weights)
    assert grid.values.tolist() == [int(factor) * int(value) for value in change]
    assert grid.values.dtype == np.int64
    for one in (mean, new, grid):
        assert (one.train_loss, one.buffers.tolist()) == (0.3, [1.0])


def test_poison_reaches_hostile_training_images_and_nothing_else(plan_of):
    prepared = prepare(plan_of())
    attack = Attack("backdoor", target=1, share=0.5)
    found = poisoned(prepared, attack, {"site-03"}, seed=1)
    assert found.test is prepared.test
    for before, after in zip(prepared.sites, found.sites, strict=True):
        if before.name != "site-03":
            assert after is before
            continue
        differs = (before.train.images != after.train.images).flatten(1).any(dim=1)
        assert differs.sum() == round(0.5 * len(before.train))
        assert (after.train.targets[differs] == 1).all()
        assert torch.equal(before.train.targets[~differs], after.train.targets[~differs])
    assert poisoned(prepared, Attack("scaling"), {"site-03"}, seed=1) is prepared


def test_the_trigger_is_a_corner_patch_on_a_copy():
    images = torch.zeros((2, 1, 28, 28), dtype=torch.uint8)
    patched = stamped(images)
    assert images.sum() == 0
    assert (patched[:, :, 24:, 24:] == 255).all()
    assert patched.sum() == 2 * 16 * 255
    floats = torch.tensor([0.5, 2.0]).reshape(2, 1, 1, 1).expand(2, 1, 14, 14) * torch.eye(14)
    assert stamped(floats)[:, 0, 12, 13].tolist() == [0.5, 2.0]


@given(st.integers(0, 2**32), st.integers(10, 30))
def test_more_hostile_sites_include_the_fewer(seed, sites):
    names = [f"site-{number}" for number in range(sites)]
    drawn = [set(hostile_sites(names, count, seed)) for count in range(sites)]
    assert all(few < many for few, many in itertools.pairwise(drawn))
    with pytest.raises(ConfigError):
        hostile_sites(names, sites, seed)


# Plans


def test_settings_change_what_they_say(plan_of):
    plan, defence = plan_of(), Defence(3, 0.7)
    found = {name: defended(plan, name, 4, defence).privacy for name in ("sum", "site-bound", "group-both")}
    assert found["sum"].stages == ()
    assert found["site-bound"].stages == ({"kind": "norm_bound", "l2_norm": 0.7},)
    both = found["group-both"].secure_aggregation
    assert (both.groups, both.combine, both.l2_norm) == (3, "median", 0.7)
    assert hides_among(defended(plan, "group-both", 4, defence)) == 3
    assert hides_among(defended(plan, "sum", 4, defence)) == 10


def test_what_makes_no_study_is_refused_before_anything_is_trained(plan_of, tmp_path):
    plan, out = plan_of(), tmp_path / "study"
    with pytest.raises(GuaranteeError):
        robustness(plan, out, groups=4)
    with pytest.raises(ConfigError, match="distributed"):
        robustness(plan, out, settings=("dp",))
    with pytest.raises(ConfigError, match="fraction"):
        robustness(plan, out, hostile=Hostile(fractions=(0.01,)))
    with pytest.raises(ConfigError, match="at least 10"):
        robustness(plan_of(PLAN, "data.partition.sites=5"), out)
    with pytest.raises(ConfigError, match="no such setting"):
        robustness(plan, out, settings=("hope",))
    with pytest.raises(ConfigError, match="no such attack"):
        robustness(plan, out, hostile=Hostile(attacks=("charm",)))
    with pytest.raises(ConfigError, match="attacks"):
        robustness(plan, out, hostile=Hostile(attacks=()))
    assert not out.exists()


# Tables


def _study(*runs):
    return Robustness("classification", "p", 10, 3, runs, rows_of(runs), {"scale": 10.0, "target": 0, "share": 0.5})


def test_rows_gather_seeds_and_pair_them_with_the_unattacked_run():
    honest = [RobustnessRun("sum", "none", 0.0, 0, seed, score=score) for seed, score in ((1, 0.9), (2, 0.8))]
    hit = [RobustnessRun("sum", "scaling", 0.1, 1, seed, score=score) for seed, score in ((1, 0.6), (2, 0.7))]
    row = _study(*honest, *hit).rows[1]
    assert row.score.mean == pytest.approx(0.65)
    assert row.lost.mean == pytest.approx(0.2)
    assert row.lost.sd == pytest.approx(0.2 / 2**0.5)


def test_a_run_without_a_model_is_told_with_its_reason():
    runs = (
        RobustnessRun("sum", "none", 0.0, 0, 1, score=0.9),
        RobustnessRun("sum", "scaling", 0.1, 1, 1, failed="It diverged."),
    )
    text = markdown(_study(*runs))
    assert "| scaling | sum | 0.900 | no model |" in text
    assert "It diverged." in text
    assert json.loads(json.dumps(to_json(_study(*runs)), allow_nan=False))["rows"][1]["failed"] == {"1": "It diverged."}
    assert csv_table(_study(*runs)).splitlines()[2].startswith("sum,scaling,0.1,1,0,0,1,")


def test_groups_of_two_hide_nobody():
    with pytest.raises(GuaranteeError):
        SecureAggregation(groups=5).smallest_group(10)
