"""What record, model card and dry run say of secure sums and of noise that sites share out, before any data."""

import json
from importlib import resources

import jsonschema
import pytest
from click.testing import CliRunner

from medveil.accounting.accountants import epsilon_of
from medveil.accounting.events import PoissonGaussian, Repeated
from medveil.cli.main import cli
from medveil.errors import GuaranteeError
from medveil.federation.stages import build_pipeline
from medveil.study.card import against_text, epsilon_text, privacy_lines
from medveil.study.claims import assumptions, holds_against, out_of_scope
from medveil.study.dry_run import dry_run
from medveil.study.plan import load_plan
from medveil.study.privacy import bind_plan
from medveil.study.record import protection_part

PLAIN = """
name = "sums"
task = "classification"
[data.source]
kind = "phantom"
subjects = 60
size = [16, 16]
[data.splits]
kind = "random"
[data.partition]
kind = "iid"
sites = 6
[model]
kind = "cnn"
[federation]
rounds = 3
validate_every = 2
algorithm = { kind = "fedavg", local_steps = 2 }
weighting = "equal"
"""
CLAIM = """
[references]
central = false
local_only = false
[privacy]
unit = "patient"
relation = "add-remove"
delta = 1e-3
trusted = "nobody"
held_out = "public"
"""
SUM = """
[privacy.secure_aggregation]
"""
DP = """
[privacy.dp]
kind = "{kind}"
sampling = {{ rate = 0.3, nominal_units = 42 }}
clipping = {{ kind = "flat", l2_clip_norm = 1.0 }}
noise = {{ multiplier = 1.5 }}
"""
DISTRIBUTED = PLAIN.replace('"fedavg", local_steps = 2', '"fedsgd"') + CLAIM + SUM + DP.format(kind="distributed")
LOCAL = PLAIN + CLAIM + DP.format(kind="local")
TABLE = "privacy.secure_aggregation={}"


@pytest.fixture
def plan(tmp_path):
    def build(text, *overrides):
        path = tmp_path / "plan.toml"
        path.write_text(text)
        return load_plan(path, overrides)

    return build


def of_sums(**settings):
    values = ", ".join(f"{name} = {value}" for name, value in settings.items())
    return f"privacy.secure_aggregation={{{values}}}"


def protection(plan):
    return dry_run(plan)["protection"]


def test_without_a_secure_sum_nothing_is_claimed(plan):
    said = protection(plan(PLAIN))
    assert "model updates, its number of examples, its training loss and its validation scores" in said["active"][0]
    assert said["active"][0].endswith("its validation predictions.")
    assert "Secure aggregation: none. The coordinator saw every site's update in the clear." in said["inactive"]


@pytest.mark.parametrize(("text", "what"), [(PLAIN, "model updates"), (LOCAL, "noisy model updates")])
def test_with_one_nothing_is_said_to_leave_a_site_in_the_clear(plan, text, what):
    said = protection(plan(text, of_sums(colluding=1)))
    assert f"What left a site: {what}" in said["active"][0]
    assert said["active"][0].endswith("all of it masked, so that only sums over sites could be read.")
    assert not any(text.startswith("Secure aggregation") for text in said["inactive"])
    (told,) = (text for text in said["active"] if text.startswith("Secure aggregation: "))
    assert "even with up to 1 other site on its side" in told
    assert "Of 6 sites, 4 must help to open a sum, and up to 2 may be missing from it." in told


def test_losses_are_no_part_of_what_a_private_site_tells(plan):
    left = protection(plan(DISTRIBUTED))["active"][0]
    assert "noisy steps; validation scores; validation predictions in bins, to choose the decision threshold" in left
    assert "loss" not in left


def test_a_fixed_threshold_needs_no_predictions(plan):
    assert "predictions" not in protection(plan(DISTRIBUTED, "evaluation.threshold=0.5"))["active"][0]


def test_statistics_leave_a_site_too(plan):
    assert "intensities" in protection(plan(PLAIN, of_sums(statistics="true")))["active"][0]


def test_nobody_counts_on_a_silent_site_unless_it_is_said(plan):
    told = " ".join(protection(plan(PLAIN, of_sums(colluding=0)))["active"])
    assert "as long as no site tells it what it knows" in told


def test_groups_are_said(plan):
    told = " ".join(protection(plan(PLAIN, of_sums(groups=2)))["active"])
    assert "over each of 2 groups of sites" in told
    assert "the 3 sites of the smallest group, 2 must help" in told


def test_sites_that_only_the_data_know(plan):
    text = PLAIN.replace('kind = "iid"\nsites = 6', 'kind = "natural"')
    loaded = plan(text, of_sums(colluding=1))
    unknown = protection_part(loaded, build_pipeline(()), None)
    known = protection_part(loaded, build_pipeline(()), None, sites=6)
    assert "More than half of the sites must help" in unknown["active"][1]
    assert "Of 6 sites, 4 must help" in known["active"][1]


def test_the_claim_names_both_epsilons_and_its_numbers(plan):
    loaded = plan(DISTRIBUTED, of_sums(colluding=1, dropouts=1))
    said = dry_run(loaded)
    # Six hospitals, one missing: against the server alone five shares of noise, against it with one hospital four.
    alone = epsilon_of(
        Repeated(event=PoissonGaussian(sampling_rate=0.3, noise_multiplier=1.5 * (5 / 4) ** 0.5), count=3),
        delta=1e-3,
        relation="add-remove",
    ).epsilon
    privacy = said["privacy"]
    assert privacy["epsilon_server"] == pytest.approx(alone, rel=1e-3)
    assert privacy["epsilon_server"] < privacy["epsilon"] == privacy["epsilon_insider"]
    line = privacy_lines(privacy)[0]
    assert line.startswith("Privacy: epsilon ")
    assert "against the server alone" in line
    assert "against the server with hospitals on its side, for one patient at delta 0.001" in line
    (claim,) = (text for text in said["protection"]["active"] if text.startswith("Differential privacy: "))
    assert against_text(privacy) in claim
    assert "up to 1 other hospital" in claim


def test_where_no_hospital_helps_there_is_one_epsilon_and_it_says_so(plan):
    said = dry_run(plan(DISTRIBUTED, of_sums(colluding=0)))["privacy"]
    helped = epsilon_text(said["epsilon_insider"])
    assert said["epsilon_insider"] > said["epsilon_server"]
    assert against_text(said).endswith(f"against the server, if no hospital helps it, {helped} if one does,")
    assert any(
        text.startswith("Another hospital of the training with a larger epsilon only") for text in said["holds_against"]
    )


@pytest.mark.parametrize(("colluding", "word"), [(1, "1 other hospital"), (2, "2 other hospitals")])
def test_whom_shared_noise_holds_against(plan, colluding, word):
    said = holds_against(bind_plan(plan(DISTRIBUTED, of_sums(colluding=colluding, dropouts=0))))
    assert f"up to {word}, with the server or without it" in said[0]
    assert "trusted" not in " ".join(said)
    assert f"Not more than {word} together: each knows its own share of the noise and can subtract it." in said
    assert "Not the patient's own hospital, which has the images." in said


def test_what_shared_noise_rests_on(plan):
    loaded = plan(DISTRIBUTED, of_sums(colluding=1, dropouts=1, threshold=5))
    said = assumptions(loaded, bind_plan(loaded))
    for part in (
        "In every sum at least 4 of 6 hospitals add their share of the noise",
        "at most 1 may collude and 1 be missing",
        "A sum needs 5 of 6 hospitals to open",
        "Nobody breaks X25519",
        "true identity keys",
    ):
        assert any(part in text for text in said), part
    uncovered = out_of_scope(loaded, bind_plan(loaded))
    assert any("before masking" in text for text in uncovered)
    alone = plan(LOCAL)
    assert not any("share of the noise" in text for text in assumptions(alone, bind_plan(alone)))


# The dry run


def test_the_dry_run_tells_the_sums(plan):
    assert dry_run(plan(PLAIN))["secure_aggregation"] is None
    said = dry_run(plan(DISTRIBUTED, of_sums(colluding=1, dropouts=1)))["secure_aggregation"]
    assert (said["groups"], said["thresholds"], said["min_included"]) == ([6], [4], [5])
    assert said["modulus_bits"] == 32
    assert said["value_range"] is None
    grouped = dry_run(plan(PLAIN, of_sums(groups=2, modulus_bits=64)))["secure_aggregation"]
    assert (grouped["groups"], grouped["thresholds"], grouped["modulus_bits"]) == ([3, 3], [2, 2], 64)


def test_what_is_not_known_yet_is_not_made_up(plan):
    text = PLAIN.replace('kind = "iid"\nsites = 6', 'kind = "natural"')
    content = dry_run(plan(text, of_sums(colluding=1)))
    said = content["secure_aggregation"]
    assert said["groups"] is said["thresholds"] is said["modulus_bits"] is None
    assert content["summary"]["communication"].startswith("at most about")


@pytest.mark.parametrize("text", [PLAIN, LOCAL])
def test_sums_that_hide_nothing_are_refused_before_any_data(plan, text):
    with pytest.raises(GuaranteeError, match="threshold"):
        dry_run(plan(text, of_sums(colluding=5)))


@pytest.mark.parametrize("bits", [32, 64])
def test_bytes_follow_the_modulus_and_the_blocks(plan, bits):
    def sent(**settings):
        model = dry_run(plan(PLAIN, of_sums(modulus_bits=bits, **settings)))["model"]
        return model["bytes_per_site"], 3 * model["parameters"] * bits // 8

    whole, masked = sent()
    half, _ = sent(blocks=2)
    assert 0 < whole - masked < 30_000  # five sums, running statistics and messages
    assert whole - half == pytest.approx(masked / 2, rel=1e-3)


def test_the_summary_has_a_line_for_each_sentence(plan):
    content = dry_run(plan(DISTRIBUTED, of_sums(colluding=1, dropouts=1)))
    summary, said = content["summary"], content["protection"]
    lines = summary["protection"].splitlines()[1:]
    assert lines == [f"    + {text}" for text in said["active"]] + [f"    - {text}" for text in said["inactive"]]
    assert summary["secure_aggregation"].startswith(
        "4 of 6 sites open a sum, 1 may drop out, 1 may collude with the server, modulus 2^32, resolution "
    )
    assert "modulo 2^32" in summary["communication"]
    assert dry_run(plan(PLAIN))["summary"]["secure_aggregation"] == "none"


def test_the_terminal_names_epsilons_threshold_dropouts_and_modulus(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(DISTRIBUTED)
    arguments = ["train", str(path), "--dry-run", "--set", of_sums(colluding=1, dropouts=1)]
    text = CliRunner().invoke(cli, arguments).output
    for part in (
        "against the server alone",
        "against the server with hospitals on its side",
        "Of 6 sites, 4 must help to open a sum, and up to 1 may be missing",
        "modulo 2^32",
    ):
        assert part in text, part
    content = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).output)
    assert content["secure_aggregation"]["thresholds"] == [4]


@pytest.mark.parametrize(
    ("text", "overrides"),
    [(PLAIN, [of_sums(colluding=1, statistics="true")]), (DISTRIBUTED, [of_sums(colluding=1)]), (LOCAL, [TABLE])],
    ids=["sum", "distributed", "local"],
)
def test_a_run_sends_what_the_dry_run_says_and_its_record_follows_the_schema(plan, tmp_path, text, overrides):
    from medveil.report.page import write_report
    from medveil.study.train import train

    loaded = plan(text, "references={central = false, local_only = false}", *overrides)
    planned = dry_run(loaded)
    record = train(loaded, tmp_path / "run")
    assert record["protection"] == planned["protection"]
    sent = record["cost"]["bytes_sent_per_site"].values()
    # The first message of a session, with the keys, is not counted; nor are headers to the byte.
    assert all(count == pytest.approx(planned["model"]["bytes_per_site"], rel=0.02, abs=800) for count in sent)
    sums, said = record["secure_aggregation"], planned["secure_aggregation"]
    for key in ("thresholds", "min_included", "colluding", "combine", "blocks"):
        assert sums[key] == said[key]
    assert [len(group) for group in sums["groups"]] == said["groups"]
    for key in ("modulus_bits", "resolution", "value_range"):
        assert sums[key] == said[key]
    schema = resources.files("medveil").joinpath("..", "..", "docs", "reference", "record.schema.json")
    jsonschema.validate(record, json.loads(schema.read_text(encoding="utf-8")))
    assert "Secure aggregation: what the server saw" in write_report(tmp_path / "run").read_text(encoding="utf-8")
