"""What the model card says of privacy, and the figures in words that card, command line and report share."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medveil.study.card import (
    claim_text,
    delta_text,
    epsilon_text,
    model_card,
    one_in,
    percent_text,
    privacy_lines,
    right_text,
)


def record_with(privacy):
    return {
        "name": "X-rays",
        "task": "classification",
        "seed": 0,
        "plan_hash": "7f0c",
        "medveil_version": "0.1.0",
        "created": "2025-03-04",
        "model": {"kind": "cnn", "parameters": 100, "architecture_hash": "a1", "input_shape": [1, 28, 28]},
        "training": {"algorithm": "fedsgd", "rounds_run": 10},
        "data": {
            "kind": "real",
            "name": "X-rays",
            "subjects": {"train": 10},
            "subject_rule": "a patient",
            "licence": "",
            "citation": "",
            "class_names": ["normal", "pneumonia"],
            "sites": [{}, {}],
        },
        "test": {"auc": {"value": 0.9, "low": None, "high": None}, "per_site": {}},
        "details": {"bootstrap": {"level": 0.95}},
        "privacy": privacy,
        "protection": {"active": ["Images stayed."], "inactive": []},
    }


def section(card):
    return card.split("## Privacy\n")[1].split("\n## ")[0]


def test_a_card_carries_the_claim_with_its_terms(claim):
    text = section(model_card(record_with(claim())))
    for part in (
        "- Epsilon 2.99 for one patient at delta 1e-5 (add-remove), mode central, trusted: curator.",
        "right 67.4 times in 100; guessing is right 50.",
        "- Noise: multiplier 1.137, sampling rate 0.02, 812 steps, clip norm 1.",
        "- Holds against: Everyone who sees the weights",
        "- Does not hold: Not the curator",
        "- Assumes: What counts as a patient",
        "- Not covered: Test patients",
    ):
        assert part in text, part


def test_a_card_without_a_claim_promises_nothing():
    text = section(model_card(record_with(None)))
    assert "Nothing is promised" in text
    assert "psilon" not in text


def test_a_stamped_card_gives_no_figure_that_could_be_quoted(stamped):
    text = section(model_card(record_with(stamped())))
    assert "**NOT PRIVATE.** The noise came from a seed" in text
    assert "no promise for this run" in text
    assert "2.9" not in text
    assert "Holds against" not in text


def test_lines_for_the_terminal(claim, stamped):
    assert privacy_lines(claim()) == [
        "Privacy: epsilon 2.99 for one patient at delta 1e-5 (add-remove), mode central, trusted: curator",
        "Noise: multiplier 1.137, sampling rate 0.02, 812 steps, clip norm 1",
    ]
    first, second, _ = privacy_lines(stamped())
    assert first.startswith("NOT PRIVATE: The noise came from a seed")
    assert second.startswith("Privacy as calculated: ")
    (only,) = privacy_lines(None)
    assert "Nothing is promised" in only


@pytest.mark.parametrize(("unit", "expected"), [("image", "one image"), ("site", "one hospital")])
def test_the_unit_is_always_named(claim, unit, expected):
    assert f"for {expected} at delta" in claim_text(claim(unit=unit))


@given(st.floats(0, 1e8))
def test_epsilon_is_never_shown_smaller_than_it_is(value):
    shown = Fraction(epsilon_text(value).replace(",", ""))
    assert 0 <= shown - Fraction(repr(value)) < Fraction(1, 100)


@given(st.floats(0, 1))
def test_a_bound_is_never_shown_smaller_than_it_is(share):
    shown = Fraction(percent_text(share).removesuffix(" %")) / 100
    exact = Fraction(repr(share))
    assert exact <= shown <= exact + max(exact / 10, Fraction(0))


@given(st.floats(0, 1))
def test_guesses_are_never_shown_worse_than_they_are(advantage):
    shown = float(right_text(advantage))
    assert 50 * (1 + advantage) - 1e-9 <= shown <= min(100, 50 * (1 + advantage) + 0.1 + 1e-9)


@given(st.floats(1e-12, 1))
def test_one_in_is_never_rarer_than_it_is(share):
    amount = int(one_in(share).removeprefix("1 in ").replace(",", ""))
    assert amount == pytest.approx(math.floor(1 / share), abs=1)
    assert 1 / amount >= share * (1 - 1e-6)


@given(st.floats(1e-15, 0.5))
def test_delta_is_written_as_a_number(delta):
    assert float(delta_text(delta)) == pytest.approx(delta, rel=1e-5)
