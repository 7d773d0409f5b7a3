"""The site's policy: strict by default, every broken rule at once, epsilon computed and never believed."""

import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant

from medveil.connect.policy import TEMPLATE, SitePolicy, load_policy
from medveil.connect.policy_checks import check_plan, check_request, honest_epsilon, refuse
from medveil.errors import ConfigError, PolicyError
from medveil.study.plan import load_plan
from medveil.study.privacy import bind_plan

HASH = "ab" * 32
PAGE = Path(__file__).parents[3] / "docs" / "reference" / "site-policy.md"
SITES = tuple(f"site-{number}" for number in range(1, 6))
POLICY = {
    "tasks": ["classification"],
    "datasets": ["ours"],
    "max_rounds": 100,
    "max_parameters": 1000,
    "models": {"architectures": [HASH]},
    "submitters": [{"org": "uni", "role": "lead"}],
    "privacy": {
        "modes": ["distributed"],
        "units": ["patient"],
        "epsilon": 8.0,
        "delta": 1e-5,
        "relation": "add-remove",
        "held_out": ["public"],
        "one_image_per_patient": True,
        "colluding": 1,
        "min_sites": 5,
        "min_included": 4,
    },
}


@dataclass(frozen=True)
class Someone:
    name: str = "ann@uni"
    org: str = "uni"
    role: str = "lead"


def policy(**changes):
    values = {**POLICY, "privacy": {**POLICY["privacy"], **changes.pop("privacy", {})}, **changes}
    return SitePolicy.model_validate(values)


def plan_of(*overrides, name="pneumonia-28-private"):
    return load_plan(name, ["federation.rounds=20", *overrides])


def broken(policy, plan, **changes):
    facts = {
        "bound": bind_plan(plan),
        "submitter": Someone(),
        "sites": SITES,
        "architecture_hash": HASH,
        "dataset": "ours",
        "parameters": 1000,
        "deidentified": True,
        **changes,
    }
    return [finding.rule for finding in check_plan(policy, plan, **facts)]


def test_a_plan_that_meets_every_rule_may_run():
    assert broken(policy(), plan_of()) == []


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"tasks": ["segmentation"]}, "tasks"),
        ({"datasets": []}, "datasets"),
        ({"max_rounds": 19}, "max_rounds"),
        ({"max_parameters": 999}, "max_parameters"),
        ({"models": {"architectures": ["cd" * 32]}}, "models.architectures"),
        ({"models": {"architectures": "any", "kinds": ["cnn"]}}, "models.kinds"),
        ({"models": {"architectures": [HASH], "kinds": ["cnn"]}}, "models.kinds"),
        ({"submitters": []}, "submitters"),
        ({"submitters": [{"org": "uni", "role": "member"}, {"name": "bob"}]}, "submitters"),
        ({"privacy": {"modes": ["central", "local", "site", "none"]}}, "privacy.modes"),
        ({"privacy": {"units": ["image", "site"]}}, "privacy.units"),
        ({"privacy": {"epsilon": 7.99}}, "privacy.epsilon"),
        ({"privacy": {"held_out": ["private"]}}, "privacy.held_out"),
        ({"privacy": {"one_image_per_patient": False}}, "privacy.one_image_per_patient"),
        ({"privacy": {"min_sites": 6}}, "privacy.min_sites"),
        ({"privacy": {"min_included": 5}}, "privacy.min_included"),
    ],
)
def test_every_rule_refuses_what_it_is_for(changes, rule):
    assert broken(policy(**changes), plan_of()) == [rule]


def test_more_colluders_than_the_plan_was_made_for_cost_more_too():
    assert broken(policy(privacy={"colluding": 2}), plan_of()) == ["privacy.epsilon", "privacy.colluding"]


def test_a_smaller_delta_costs_more_and_is_not_met():
    assert broken(policy(privacy={"delta": 9e-6}), plan_of()) == ["privacy.delta", "privacy.epsilon"]
    assert broken(policy(privacy={"delta": 1e-4, "epsilon": 7.0}), plan_of()) == []  # the same run at a larger delta


def test_the_policys_relation_is_used_and_not_the_plans():
    assert broken(policy(privacy={"relation": "replace-one"}), plan_of()) == ["privacy.epsilon"]
    assert broken(policy(privacy={"relation": "replace-one", "epsilon": 20.0}), plan_of()) == []


@pytest.mark.parametrize(
    ("facts", "rule"),
    [
        ({"deidentified": False}, "deidentified"),
        ({"dataset": "theirs"}, "datasets"),
        ({"architecture_hash": "cd" * 32}, "models.architectures"),
        ({"parameters": 1001}, "max_parameters"),
        ({"submitter": Someone(role="member")}, "submitters"),
        ({"bound": None}, "claim"),
    ],
)
def test_facts_of_the_site_are_what_counts(facts, rule):
    assert broken(policy(), plan_of(), **facts) == [rule]


def test_noise_for_other_sites_than_take_part_is_refused():
    assert broken(policy(privacy={"min_sites": 3, "min_included": 1}), plan_of(), sites=SITES[:4]) == ["claim"]
    repeated = (*SITES[:4], SITES[0])
    assert "claim" in broken(policy(), plan_of(), sites=repeated)


def test_too_few_sites_for_the_secure_sum_are_refused():
    findings = broken(policy(privacy={"min_sites": 1, "min_included": 1}), plan_of(), sites=SITES[:2])
    assert findings == ["claim", "privacy.secure_aggregation"]


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 19},
        {"delta": 1e-6},
        {"unit": "image"},
        {"relation": "replace-one"},
        {"earlier": ("x",)},
        {"trusted": "server"},
        {"mechanism": bind_plan(plan_of("privacy.dp.noise.epsilon=0.5")).mechanism},
    ],
)
def test_a_guarantee_of_another_plan_is_not_believed(change):
    plan = plan_of()
    assert "claim" in broken(policy(), plan, bound=replace(bind_plan(plan), **change))


def test_a_stated_multiplier_is_the_plans_own():
    plan = plan_of("privacy.dp.noise={ multiplier = 1.0 }")
    bound = replace(bind_plan(plan), noise_multiplier=50.0)
    assert "claim" in broken(policy(), plan, bound=bound)


def test_hazards_are_refused_and_can_be_allowed():
    plan = plan_of(
        'privacy.dp.noise.generator="seeded"', "references.central=true", 'privacy.overrides=["unprotected-references"]'
    )
    assert broken(policy(), plan) == ["privacy.overrides", "privacy.debug_randomness"]
    allowed = {"debug_randomness": True, "overrides": ["unprotected-references"]}
    assert broken(policy(privacy=allowed), plan) == []


def test_a_plan_without_privacy_needs_none_in_the_policy_and_a_secure_sum():
    plan = load_plan("pneumonia-28", ["federation.rounds=20"])
    assert broken(policy(), plan) == ["privacy.modes", "privacy.secure_aggregation"]
    lenient = policy(privacy={"modes": ["none"], "secure_aggregation": False})
    assert broken(lenient, plan) == []
    assert broken(lenient, plan, bound=bind_plan(plan_of())) == ["claim"]


def test_small_groups_have_few_sites_in_a_sum():
    plan = plan_of("privacy.secure_aggregation={ groups = 2, dropouts = 0 }", "data.partition.sites=7")
    sites = tuple(f"s{number}" for number in range(7))
    lenient = {"colluding": 0, "min_included": 3}
    assert broken(policy(privacy=lenient), plan, sites=sites) == []
    assert broken(policy(privacy={**lenient, "min_included": 4}), plan, sites=sites) == ["privacy.min_included"]


def test_epsilon_is_that_of_another_accountant():
    """Google's accountant, on the noise that is left when two of five sites collude and one is missing."""
    plan = plan_of("privacy.dp.noise={ multiplier = 1.0 }")
    bound = bind_plan(plan)
    for colluding, honest in ((1, 3), (2, 2)):
        accountant = PLDAccountant()
        noise = (honest / 3) ** 0.5
        step = dp_event.PoissonSampledDpEvent(0.25, dp_event.GaussianDpEvent(noise))
        accountant.compose(dp_event.SelfComposedDpEvent(step, 20))
        found = honest_epsilon(policy(privacy={"colluding": colluding}).privacy, bound)
        assert found == pytest.approx(accountant.get_epsilon(1e-5), rel=2e-3)
    assert honest_epsilon(policy(privacy={"colluding": 4}).privacy, bound) == float("inf")


def test_every_broken_rule_is_told_at_once():
    plan = load_plan("pneumonia-28")
    changes = {"submitter": Someone(org="x"), "deidentified": False, "sites": SITES[:1], "dataset": "y"}
    bound = {"bound": None, "architecture_hash": "0" * 64, "parameters": 9**9}
    rules = broken(SitePolicy(), plan, **changes, **bound)
    assert rules == [
        *("tasks", "max_rounds", "datasets", "deidentified", "models.architectures", "max_parameters", "submitters"),
        *("privacy.min_sites", "privacy.modes", "privacy.secure_aggregation"),
    ]


def test_the_refusal_names_rule_value_and_remedy():
    facts = {"bound": None, "submitter": Someone(), "sites": SITES, "architecture_hash": HASH}
    findings = check_plan(policy(), load_plan("pneumonia-28"), **facts, dataset="ours", parameters=1, deidentified=True)
    error = refuse(findings)
    assert isinstance(error, PolicyError)
    assert {finding.rule for finding in findings} == {"privacy.modes", "privacy.secure_aggregation"}
    assert all(f"{finding.rule}: {finding.got}" in str(error) and finding.remedy in str(error) for finding in findings)
    with pytest.raises(ValueError, match="breaks no rule"):
        refuse([])


def test_no_file_refuses_every_plan(tmp_path):
    nothing = load_policy(tmp_path / "none.toml")
    (tmp_path / "empty.toml").write_text("")
    assert nothing == load_policy(tmp_path / "empty.toml") == SitePolicy()
    for name in ("pneumonia-28", "pneumonia-28-private", "pneumonia-28-private-central"):
        assert len(broken(nothing, load_plan(name))) >= 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_round = 3", "unknown key max_round"),
        ("[privacy]\nepsilom = 3", "unknown key privacy.epsilom"),
        ("max_rounds = -1", "max_rounds is not valid"),
        ('[privacy]\nmodes = ["distributd"]', "not valid"),
        ('[privacy]\nmodes = ["none"]', "min_sites"),
        ('[privacy]\nmodes = ["central"]\nunits = ["patient"]\nmin_sites = 1', "epsilon, delta, relation"),
        ("[[submitters]]\n", "admit everyone"),
        ('[models]\narchitectures = ["ab"]', "not valid"),
        ("[privacy]\nepsilon = inf", "not valid"),
        ("[privacy]\nepsilon = 101.0", "not valid"),
        ("tasks = [", "not valid TOML"),
    ],
)
def test_a_policy_that_is_not_understood_is_an_error(tmp_path, text, words):
    file = tmp_path / "policy.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_policy(file)
    assert words in str(caught.value)
    assert "plan.md" not in str(caught.value)
    assert caught.value.remedy


def test_a_folder_or_bytes_in_place_of_a_policy(tmp_path):
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    for path in (tmp_path, tmp_path / "bytes.toml"):
        with pytest.raises(ConfigError):
            load_policy(path)


def test_the_digest_is_of_what_the_file_means(tmp_path):
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text('tasks = ["classification"]\nmax_rounds = 3')
    two.write_text('# a comment\nmax_rounds = 3\ntasks = ["classification"]\ndeidentified = true')
    assert load_policy(one).digest() == load_policy(two).digest()
    assert load_policy(one).digest() != SitePolicy().digest()


def keys(model, before=""):
    for name, field in model.model_fields.items():
        inner = field.annotation if isinstance(field.annotation, type) else None
        if name == "submitters":
            yield from (f"submitters.{key}" for key in ("name", "org", "role"))
        elif inner is not None and hasattr(inner, "model_fields"):
            yield from keys(inner, f"{before}{name}.")
        else:
            yield before + name


def test_the_page_and_the_example_have_every_key():
    text = PAGE.read_text(encoding="utf-8")
    told = set()
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        if "`" in heading and not heading.startswith("`["):  # the pages of other files
            continue
        table = re.fullmatch(r"`\[+(\w+)\]+`", heading)
        before = f"{table[1]}." if table else ""
        told |= {before + key for key in re.findall(r"^\| `(\w+)` \|", body, re.MULTILINE)}
    assert told == set(keys(SitePolicy))
    values = tomllib.loads(TEMPLATE.read_text(encoding="utf-8"))
    written = {
        name if not isinstance(value, dict) else f"{name}.{key}"
        for name, value in values.items()
        for key in (value if isinstance(value, dict) else [""])
    }
    assert written - {"submitters"} == {key for key in keys(SitePolicy) if not key.startswith("submitters.")}
    load_policy(TEMPLATE)


def test_what_is_asked_before_any_data_are_read_are_rules_of_the_whole_policy():
    plan = load_plan("pneumonia-28")
    early = check_request(SitePolicy(), plan, bound=None, submitter=Someone(org="x"))
    facts = {"bound": None, "submitter": Someone(org="x"), "sites": SITES, "architecture_hash": HASH}
    whole = check_plan(SitePolicy(), plan, **facts, dataset="ours", parameters=1, deidentified=True)
    assert [one.rule for one in early] == ["tasks", "max_rounds", "submitters", "privacy.modes"]
    assert set(early) <= set(whole)
    assert check_request(policy(privacy={"modes": ["none"]}), plan, bound=None, submitter=Someone()) == []


def test_epsilon_over_all_runs_is_that_of_one_run_unless_the_policy_says_more():
    floor = policy().privacy
    assert floor.epsilon_over_all_runs == floor.epsilon
    assert floor.model_copy(update={"epsilon_total": 7.5}).epsilon_over_all_runs == 7.5
    assert SitePolicy().privacy.epsilon_over_all_runs is None
