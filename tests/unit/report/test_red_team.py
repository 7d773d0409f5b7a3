"""The section on attacks: what it shows, what it says where nothing was tried, and what damaged files lead to."""

import json

import numpy as np
import pytest

from medveil.errors import RunError
from medveil.report.page import write_report
from medveil.report.reading import read_run
from medveil.report.red_team import red_team


def reached(name, value, *, noise=None, epsilon=None, bound=None, images=()):
    return {
        "condition": {"name": name, "noise_multiplier": noise, "epsilon_of_release": epsilon, "sites": 1},
        "figures": {"rank1_rate": {"value": value, "low": max(value - 0.1, 0), "high": min(value + 0.1, 1)}},
        "images": list(images),
        "bound": bound,
    }


def attack(**changes):
    rows = [{"psnr_db": 33.25, "rank": 1}, {"psnr_db": 31.5, "rank": 1204}]
    return {
        "name": "inversion",
        "title": "Gradient inversion",
        "threat_model": {"adversary": "server", "sees": "one gradient", "knows": "the plan", "does": "nothing"},
        "success": "rank1_rate",
        "unprotected": reached("unprotected", 0.9, images=rows),
        "protected": reached("epsilon 8", 0.05, noise=1.25, bound=0.07, images=[{"psnr_db": 12.0, "rank": 900}]),
        "control": reached("mean image", 0.0),
        "curve": [reached("a", 0.1, epsilon=1.0, bound=0.2), reached("b", 0.8, epsilon=1e6, bound=1.0)],
        "succeeded_unprotected": True,
        "resisted": ["A network with a global mean resisted."],
        "findings": ["The server found the patient's image among 2,428 others."],
        "seconds": 3.0,
        **changes,
    }


@pytest.fixture
def attacked(classification_run):
    def write(*attacks, protection=True, pictures=True, **changes):
        folder = classification_run / "red_team"
        folder.mkdir(exist_ok=True)
        terms = {"epsilon": 8.0}
        content = {
            "schema_version": 1,
            "effort": "quick",
            "protection": terms if protection else None,
            "reference": None if protection else terms,
            "attacks": list(attacks),
            "seconds": 61.0,
            **changes,
        }
        (folder / "results.json").write_text(json.dumps(content))
        if pictures:
            images = np.random.default_rng(0).random((2, 28, 28), dtype=np.float32)
            names = ("original", "control", "unprotected", "protected")
            stored = {f"inversion/{name}": images for name in names}
            stored |= {
                "inversion/roc_false_positive_rates": np.array([0.001, 0.1, 1.0], np.float32),
                "inversion/roc_unprotected": np.array([0.1, 0.5, 1.0], np.float32),
            }
            np.savez(folder / "pictures.npz", **stored)
        return classification_run

    return write


def section(folder):
    return red_team(read_run(folder))


def texts(made):
    return json.dumps(made, default=lambda thing: vars(thing) if hasattr(thing, "__dict__") else str(thing))


def test_without_attacks_the_page_says_that_leakage_was_not_measured(classification_run):
    assert "not measured" in texts(section(classification_run))


def test_figures_intervals_bound_and_findings_are_shown(attacked):
    said = texts(section(attacked(attack())))
    for part in ("0.900", "0.800 to 1.000", "0.050", "noise multiplier 1.25", "0.070", "2,428 others"):
        assert part in said
    assert "33.2 dB, rank 1" in said
    assert "31.5 dB, rank 1,204" in said
    assert "resisted" in said
    assert "members found against false alarms" in said


def test_a_twin_that_failed_is_said_to_show_nothing(attacked):
    assert "shows nothing" in texts(section(attacked(attack(succeeded_unprotected=False))))
    assert "shows nothing" not in texts(section(attacked(attack())))


def test_protection_that_the_run_does_not_have_is_called_hypothetical(attacked):
    assert "hypothetical" in texts(section(attacked(attack(), protection=False)))
    assert "hypothetical" not in texts(section(attacked(attack())))


def test_what_was_not_tried_is_named_with_its_reason(attacked):
    said = texts(section(attacked({"name": "membership", "not_tried": "Too few patients. Got: 4"}, pictures=False)))
    assert "Too few patients" in said


def test_pictures_warn_of_patients_unless_they_are_phantoms(attacked):
    folder = attacked(attack())
    assert "training patients" in texts(section(folder))
    record = json.loads((folder / "record.json").read_text())
    record["data"]["kind"] = "phantom"
    (folder / "record.json").write_text(json.dumps(record))
    assert "training patients" not in texts(section(folder))


AUDIT = {
    "claimed_epsilon": 8.0,
    "lower_bound": 3.62,
    "confidence": 0.99,
    "components": {
        "sensitivity": {"claimed": 2.0, "measured": 1.998, "passed": True, "failed": []},
        "noise": {"claimed": 1.5, "measured": 0.75, "passed": False, "failed": ["noise-shape"]},
    },
    "verdict": "consistent",
    "violations": [],
    "details": {
        "one_run": {"claimed_epsilon": 7.99, "lower_bound": 3.62, "canaries": 3000},
        "one_step": {"claimed_epsilon": 2.37, "lower_bound": None},
    },
    "caveat": "Evidence, not proof.",
}


@pytest.mark.parametrize("with_attacks", [True, False])
def test_the_audit_is_shown_with_or_without_attacks(attacked, classification_run, with_attacks):
    folder = attacked(attack()) if with_attacks else classification_run
    (folder / "red_team").mkdir(exist_ok=True)
    (folder / "red_team" / "audit.json").write_text(json.dumps(AUDIT))
    said = texts(section(folder))
    for part in ("3.62", "2.37", "no finite one", "FAILED: noise-shape", "compatible with the claimed epsilon"):
        assert part in said
    assert ("No attack was run" in said) is not with_attacks


def test_a_violated_claim_is_stamped(attacked):
    folder = attacked(attack())
    broken = {**AUDIT, "verdict": "violated", "violations": ["one step: epsilon is at least 4.740"]}
    (folder / "red_team" / "audit.json").write_text(json.dumps(broken))
    page = write_report(folder).read_text()
    assert "AUDIT FAILED" in page
    assert "at least 4.740" in page


def test_names_are_escaped(attacked):
    page = write_report(attacked(attack(title="<b>bold</b>", findings=["<script>1</script>"]))).read_text()
    assert "<b>bold" not in page
    assert "<script>" not in page


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.json", b"{"),
        ("results.json", b'{"schema_version": 1, "effort": "quick", "attacks": [{"title": 3}]}'),
        ("results.json", b'{"schema_version": 99, "effort": "quick"}'),
        ("pictures.npz", b"nothing"),
    ],
)
def test_damaged_files_are_refused_without_their_contents(attacked, name, content):
    folder = attacked(attack())
    (folder / "red_team" / name).write_bytes(content)
    with pytest.raises(RunError):
        read_run(folder)


def test_pictures_that_are_not_finite_are_refused(attacked):
    folder = attacked(attack())
    np.savez(folder / "red_team" / "pictures.npz", **{"inversion/original": np.full((1, 4, 4), np.nan, np.float32)})
    with pytest.raises(RunError):
        read_run(folder)
