"""What the page says of a privacy claim, and what it must never say."""

import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest

from medveil.errors import RunError
from medveil.report import claim_wording, figures, privacy
from medveil.report.claim import Claim, TradeOff
from medveil.report.page import write_report
from medveil.report.reading import read_run


class Words(HTMLParser):
    """The text of a page, or of one of its sections."""

    def __init__(self, page, section=None):
        super().__init__()
        self.section, self.inside, self.hidden, self.parts = section, section is None, False, []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.hidden = self.hidden or tag == "style"
        if tag == "section" and self.section:
            self.inside = dict(attributes).get("id") == self.section

    def handle_endtag(self, tag):
        self.hidden = self.hidden and tag != "style"
        if tag == "section" and self.section:
            self.inside = False

    def handle_data(self, data):
        if self.inside and not self.hidden:
            self.parts.append(data)

    def __str__(self):
        return re.sub(r"\s+", " ", " ".join(self.parts)).replace("\N{NO-BREAK SPACE}", " ").strip()


PAGES = {}


def words(folder, section=None):
    """Of the page of a run folder, which is written once for all tests that have the same run."""
    run = tuple((folder / name).read_bytes() for name in ("record.json", "metrics.jsonl"))
    if run not in PAGES:
        PAGES[run] = write_report(folder).read_text(encoding="utf-8")
    return str(Words(PAGES[run], section))


def model(values):
    return Claim.model_validate(values)


def test_a_claim_is_told_in_full(private_run):
    text = words(private_run(), "privacy")
    for part in (
        "the curator excepted, can tell whether one patient took part at most this much better than guessing: right",
        "right 67.4 times in 100, where guessing is right 50 times.",
        "Epsilon for the party that has it worst, everything below composed 2.99",
        "Epsilon against the server which coordinates the training 2.99",
        "Delta how far the guarantee may be missed 1e-5 (1 in 100,000)",
        "Unit whose presence is to be hidden one patient",
        "one patient, with all images, is present or absent",
        "the curator, who holds all images and adds the noise",
        "Noise multiplier 1.137",
        "Sampling rate 0.02",
        "Noisy steps charged 812 (1,000 planned)",
        "Clip norm 1 (flat)",
        "Epsilon aimed at 3",
        "PLD, pessimistic; RDP is the cross-check",
        "epsilon by Rényi DP 3.28",
        "It holds against Everyone who sees the weights after every step",
        "It does not hold against The curator, who holds all images in the clear",
        "812 times: Gaussian noise, multiplier 1.137, sampling rate 0.02 2.90",
        "published mean age Laplace noise, multiplier 20 0.05",
        "All together composed 2.99",
        "It rests on this Neighbouring data sets differ by",
        "It does not cover Test patients",
        "pool 4.10 8 2 1,626 9f2c9f2c9f2c",
    ):
        assert part in text, part


def test_rates_stand_next_to_guessing(private_run):
    """At 0.1 % and 1 % false alarms a Gaussian mechanism of mu 0.9 lets 1.43 % and 7.69 % be found."""
    text = words(private_run(), "privacy")
    assert "0.1 % 1.5 % 0.1 %" in text
    assert "1 % 7.7 % 1 %" in text
    assert "1 in 10,000 0.25 %" in text  # rebuilding: 0.241 %


def test_the_sections_follow_the_protection(private_run):
    page = write_report(private_run()).read_text(encoding="utf-8")
    anchors = re.findall(r'<section id="([a-z]+)"', page)
    assert anchors[:3] == ["comparison", "protection", "privacy"]


def test_no_claim_promises_nothing(classification_run):
    text = words(classification_run, "privacy")
    assert text.endswith("that it was trained on.")
    assert "Nothing is promised" in text
    assert "psilon" not in text


def says_private(text):
    return bool(re.search(r"\bprivate(ly)?\b", text.replace("NOT PRIVATE", ""), re.IGNORECASE))


def test_a_stamped_page_never_says_private(private_run, stamped):
    folder = private_run(stamped())
    text = words(folder)
    assert text.count("NOT PRIVATE") >= 4
    assert not says_private(text)
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    record["protection"]["active"] = ["Training was differentially private."]
    (folder / "record.json").write_text(json.dumps(record), encoding="utf-8")
    assert says_private(words(folder))  # the check would see it


def test_a_stamp_comes_first_and_takes_the_promise_back(private_run, stamped):
    folder = private_run(stamped())
    assert words(folder).split("medveil report", 1)[1].strip().startswith("NOT PRIVATE: What was calculated")
    text = words(folder, "privacy")
    assert text.startswith("Privacy: what the model may reveal NOT PRIVATE The noise came from a seed")
    for promise in ("can tell whether", "The guarantee Epsilon", "holds against", "at most", "It rests on", "means:"):
        assert promise not in text
    assert "As calculated; no promise for this run" in text


def test_a_page_without_a_stamp_has_none(private_run):
    assert "NOT PRIVATE" not in words(private_run())


@pytest.mark.parametrize(
    ("mode", "unit", "relation", "expected"),
    [
        ("central", "patient", "add-remove", "the curator excepted, can tell whether one patient took part"),
        ("central", "image", "add-remove", "can tell whether one image was used"),
        ("local", "patient", "add-remove", "the server and all other hospitals included, can tell whether one patient"),
        ("local", "patient", "replace-one", "can tell which of two patients took part"),
        ("site", "site", "add-remove", "the server excepted, can tell whether one hospital took part"),
    ],
)
def test_the_sentence_names_observer_unit_and_relation(claim, mode, unit, relation, expected):
    assert expected in claim_wording.sentence(model(claim(mode=mode, unit=unit, relation=relation)))


def test_a_trusted_server_gets_no_promise(private_run, claim):
    text = words(private_run(claim(mode="site", unit="site", trusted="server", epsilon_server=None)), "privacy")
    assert "which coordinates the training no promise: it is trusted" in text


def test_what_is_not_known_is_said(private_run, claim):
    values = claim(epsilon_rdp=None, epsilon_target=None, epsilon_insider=None, ledgers=None)
    text = words(private_run(values), "privacy")
    assert "not known for these releases" in text
    assert "none: the noise was given" in text
    assert "Privacy ledgers: none were kept" in text
    assert "None" not in text


@pytest.mark.parametrize(
    ("epsilon", "mu", "expected"),
    [
        (2.0, 0.7, None),
        (10.0, 2.1, None),
        (10.01, 2.1, "the formal guarantee is weak"),
        (61.2, 8.0, "The guarantee is vacuous: epsilon 61.20 allows an attacker to be right 100 times in 100"),
        (9.0, 6.0, "vacuous"),
    ],
)
def test_large_epsilons_are_called_what_they_are(claim, meaning, epsilon, mu, expected):
    found = claim_wording.warning(model(claim(epsilon=epsilon, meaning=meaning(mu))))
    assert (found is None) if expected is None else (expected in found)


def test_bounds_are_never_shown_smaller_than_they_are():
    for epsilon in (0.01, 0.7, 1.0, 2.302, 6.9077, 13.0):
        assert float(claim_wording.factor(epsilon).removeprefix("at most ").replace(",", "")) >= math.exp(epsilon)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"kind": "stated", "epsilon": 1.0, "delta": 1e-6}, "stated by others: epsilon 1.00, delta 1e-6"),
        ({"kind": "composed", "events": []}, "nothing"),
        (
            {"kind": "repeat_and_select", "mean_trials": 10, "event": {"kind": "laplace", "noise_multiplier": 2}},
            "best of a random number of trials, 10 on average, each: Laplace noise, multiplier 2",
        ),
        ({"kind": "of tomorrow"}, "of tomorrow"),
        ({}, "not recorded"),
    ],
)
def test_events_in_words(event, expected):
    assert claim_wording.mechanism(event) == expected


@pytest.mark.parametrize("key", ["stamp", "delta", "unit", "trusted", "holds_against", "meaning"])
def test_a_claim_with_a_piece_missing_is_a_damaged_record(private_run, claim, key):
    values = claim()
    del values[key]
    with pytest.raises(RunError, match=f"privacy.{key}: missing"):
        read_run(private_run(values))


@pytest.mark.parametrize(
    "wrong", [{"stamp": "PRIVATE"}, {"delta": 0.0}, {"epsilon": -1.0}, {"relation": "any"}, {"steps": None}]
)
def test_a_claim_out_of_range_is_a_damaged_record(private_run, claim, wrong):
    with pytest.raises(RunError, match="damaged"):
        read_run(private_run(claim(**wrong)))


def test_the_head_of_the_page_says_what_holds(private_run, claim):
    head = words(private_run()).split("How it compares")[0]
    assert "epsilon 2.99 for one patient at delta 1e-5" in head
    assert "but not against the curator" in head
    local = words(private_run(claim(mode="local", trusted="nobody"))).split("How it compares")[0]
    assert "against everyone outside the patient's own hospital" in local


def test_limits_speak_of_the_claim(private_run, stamped):
    assert "It covers training patients alone" in words(private_run(), "limits")
    assert "its epsilon is no promise" in words(private_run(stamped()), "limits")


def test_a_pool_is_not_said_to_leave_images_at_their_sites(private_run):
    folder = private_run()
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    (folder / "record.json").write_text(json.dumps(record | {"transport": "engine"}), encoding="utf-8")
    head = words(folder).split("How it compares")[0]
    assert "one curator held" in head
    assert "kept their images" not in head


def test_a_missing_training_loss_is_explained(private_run):
    text = words(private_run(), "learning")
    assert "Training loss of this model: not released." in text
    assert "AUC on the validation patients" in text
    assert "Validation during the training" not in text


def test_missing_validations_are_explained(private_run):
    folder = private_run()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    silent = "".join(json.dumps(row | {"validation": None}) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(silent, encoding="utf-8")
    text = words(folder, "learning")
    assert "Validation during the training: none" in text
    assert "not measured" not in text


def test_the_trade_off_is_drawn_where_it_should_be(meaning):
    """The curve's points, turned back from the drawing into rates, are those of the closed form."""
    given = TradeOff(**meaning(0.9)["trade_off"])
    svg = str(figures.trade_off(given, name="trade"))
    ET.fromstring(svg.replace("xlink:href", "href"))
    paths = re.findall(r'<path d="([^"]+)"[^>]*style="fill: none; stroke: var\(--main\)', svg)
    points = [tuple(map(float, pair.split())) for pair in re.findall(r"[ML] ([\d.-]+ [\d.-]+)", paths[0])]
    left, right = points[0][0], points[-1][0]
    top, bottom = points[0][1], points[-1][1]
    assert points == sorted(points)
    assert all(first[1] <= second[1] for first, second in pairwise(points))
    alarms = [(x - left) / (right - left) for x, _ in points]
    missed = [(bottom - y) / (bottom - top) for _, y in points]
    for rate, least in zip(given.fpr, given.fnr, strict=True):
        nearest = min(range(len(alarms)), key=lambda index: abs(alarms[index] - rate))
        assert alarms[nearest] == pytest.approx(rate, abs=0.02)
        assert missed[nearest] == pytest.approx(least, abs=0.05)


def test_the_drawn_curve_goes_through_the_rates_in_the_table(claim):
    """Without them the chord from 0 to the next point would promise too much where alarms are few."""
    values = claim()
    values["meaning"]["trade_off"] = {"fpr": [0.0, 0.5, 1.0], "fnr": [1.0, 0.3, 0.0]}
    drawn = privacy._all_points(model(values).meaning)
    points = dict(zip(drawn.fpr, drawn.fnr, strict=True))
    assert set(points) == {0.0, 0.001, 0.01, 0.5, 1.0}
    assert all(points[rate["fpr"]] == pytest.approx(1 - rate["tpr"]) for rate in values["meaning"]["tpr_at_fpr"])


def test_every_block_of_the_section_is_described(private_run):
    section = privacy.privacy(read_run(private_run()))
    charts = next(block for block in section.blocks if block.kind == "charts")
    assert "at 20 % false alarms, 47 % or more" in charts.items[0].description


def test_texts_of_a_plan_stay_text(private_run, claim):
    hostile = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"
    values = claim(
        composition=[{"what": hostile, "event": {"kind": hostile}, "epsilon": 1.0}],
        assumptions=[hostile],
        clipping=hostile,
        ledgers={hostile: {"entries": 1, "epsilon_all_runs": None, "runs": 1, "cap": None, "head": hostile}},
    )
    folder = private_run(values)
    assert words(folder, "privacy").count("<script>alert('x')</script>\">") >= 4
    assert "<script" not in (folder / "report.html").read_text(encoding="utf-8")
