"""What ``medveil train`` prints of a run's privacy."""

import pytest

from medveil.cli.train import _print_dry_run, print_record

SUMMARY = dict.fromkeys(
    ("data", "sites", "model", "training", "references", "communication", "protection", "output"), "as planned"
)


def dry_run_of(privacy):
    return {
        "name": "X",
        "plan_hash": "7f0c5a93d2e14b66",
        "task": "classification",
        "seed": 0,
        "privacy": privacy,
        "summary": SUMMARY,
    }


def record_of(privacy):
    return {
        "data": {"kind": "real"},
        "references": {"central": None, "local_only": None},
        "test": {"auc": {"value": 0.9, "low": 0.85, "high": 0.95}},
        "external": [],
        "cost": {"seconds": 3.0, "peak_memory_mb": 200.0, "bytes_sent_per_site": {"a": 1000}},
        "privacy": privacy,
    }


def printed_dry_run(privacy, capsys, _):
    _print_dry_run(dry_run_of(privacy))
    return capsys.readouterr().out


def printed_record(privacy, capsys, tmp_path):
    print_record(record_of(privacy), tmp_path, None)
    return capsys.readouterr().out


both = pytest.mark.parametrize("printed", [printed_dry_run, printed_record])


@both
def test_a_claim_is_printed_with_its_terms(printed, claim, capsys, tmp_path):
    text = printed(claim(), capsys, tmp_path)
    assert "Privacy: epsilon 2.99 for one patient at delta 1e-5 (add-remove), mode central, trusted: curator\n" in text
    assert "Noise: multiplier 1.137, sampling rate 0.02, 812 steps" in text
    assert "NOT PRIVATE" not in text


@both
def test_a_stamp_is_printed_before_the_figures(printed, stamped, capsys, tmp_path):
    text = printed(stamped(), capsys, tmp_path)
    assert text.index("NOT PRIVATE: The noise came from a seed") < text.index("Privacy as calculated: epsilon")


@both
def test_no_claim_is_said_to_be_none(printed, capsys, tmp_path):
    text = printed(None, capsys, tmp_path)
    assert "Privacy: Nothing is promised" in text
    assert "psilon" not in text
