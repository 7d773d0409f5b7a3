"""What the page says of secure sums and of noise that sites share out, and what it must not say."""

import json
import re
from html.parser import HTMLParser

import pytest

from medveil.errors import RunError
from medveil.report import aggregation, claim_wording, trust, wording
from medveil.report.claim import Claim
from medveil.report.page import write_report
from medveil.report.reading import read_run
from medveil.report.secure_sums import SecureSums


class Words(HTMLParser):
    """The text of one section of a page."""

    def __init__(self, page, section):
        super().__init__()
        self.section, self.inside, self.parts = section, False, []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == "section":
            self.inside = dict(attributes).get("id") == self.section

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "section"

    def handle_data(self, data):
        if self.inside:
            self.parts.append(data)

    def __str__(self):
        return re.sub(r"\s+", " ", " ".join(self.parts)).replace("\N{NO-BREAK SPACE}", " ").strip()


def words(folder, section):
    return str(Words(write_report(folder).read_text(encoding="utf-8"), section))


def parsed(values):
    return SecureSums.model_validate(values)


SIX = {
    "groups": [["a", "b", "c"], ["d", "e", "f"]],
    "thresholds": [2, 2],
    "min_included": [2, 3],
    "colluding": 0,
    "dropped": {},
    "site_seconds": {},
}


def test_what_the_server_saw_and_did_not(private_run, shared_claim, sums):
    text = words(private_run(shared_claim(), sums()), "secure-aggregation")
    for part in (
        "The server opened 105 sums over 5 hospitals, and saw nothing that a single hospital had contributed",
        "The server saw In every round, the sum over the hospitals that took part of their clipped, noisy steps",
        "validation scores, weighted by the number of validation images; it has no noise",
        "The server did not see Any one hospital's step, even with up to 1 other hospital on its side.",
        "A sum over fewer hospitals than 4 of 5",
        "Hospitals 5 Colluding with the server tolerated 1 Needed to open a sum (threshold) 4 of 5",
        "Drop-outs survived in a round up to 1 Drop-outs that happened 3, by 1 hospital",
        "Modulus 2 to the power of 32 Resolution 1.91e-06",
        "All hospitals ran in one process here",
    ):
        assert part in text, part
    assert "Values cut" not in text  # noisy steps have no range


def test_time_and_traffic_stand_next_to_what_they_are_measured_by(private_run, shared_claim, sums):
    """2.7684 s of 1384.2 s are 0.2 %; 47.5 MB against 4 x 698,434 x 17 bytes are 1.0001."""
    text = words(private_run(shared_claim(), sums()), "secure-aggregation")
    assert "site-1 0 2.8 s 0.2 % 47.5 MB 1.00 times" in text
    assert "site-2 3 2.8 s 0.2 % 47.5 MB 1.00 times" in text
    assert "site-5 0 2.8 s 0.2 % not measured not measured" in text  # the record has no traffic of this site
    assert "Server \N{EN DASH} 1.4 s 0.1 % \N{EN DASH} \N{EN DASH}" in text
    assert "sent at least 47.5 MB: 4 bytes a parameter and round" in text


def test_bytes_in_the_clear_are_four_a_parameter_and_round(classification_run):
    assert aggregation.clear_bytes(read_run(classification_run).record) == 4 * 698_434 * 17


def test_a_run_without_a_secure_sum_has_no_such_section(classification_run):
    page = write_report(classification_run).read_text(encoding="utf-8")
    assert 'id="secure-aggregation"' not in page


def test_without_noise_the_sums_are_not_called_noisy(edited, sums):
    text = words(
        edited(lambda record: record.update(secure_aggregation=sums(value_range=1.0, clipped=0))),
        "secure-aggregation",
    )
    assert "changes of the weights, training losses and numbers of examples" in text
    assert "noisy" not in text
    assert "Range of a value ±1 Values cut to the range 0" in text


def test_how_the_threshold_was_chosen_is_told(edited, sums):
    def change(source):
        return lambda record: (
            record.update(secure_aggregation=sums()),
            record["details"].update(threshold_source=source),
        )

    secret = "largest Youden's J on histograms of validation scores in 4096 bins, summed over the sites in secret"
    assert "counts of validation predictions" in words(edited(change(secret)), "secure-aggregation")
    assert "validation predictions" not in words(edited(change("stated in the plan")), "secure-aggregation")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"clipped": 0}, None),
        ({"clipped": 7, "value_range": 0.5}, "7 values that hospitals sent lay beyond the range ±0.5"),
        ({"refused_groups": 2}, "2 sums of 105 were refused"),
        (SIX, "the sums of 2 groups, one by one"),
        (SIX, "of which the smallest has 3"),
        ({**SIX, "combine": "median"}, "The median of so few groups is their mean"),
        (
            {
                **SIX,
                "groups": [["a", "b", "c"], ["d", "e", "f"], ["g", "h", "i"]],
                "thresholds": [2] * 3,
                "min_included": [2] * 3,
                "combine": "median",
            },
            "It is no privacy protection",
        ),
        ({"groups": [["a", "b"]], "thresholds": [2], "min_included": [2], "colluding": 0}, "hides behind one other"),
        ({"groups": [["a", "b", "c"]], "thresholds": [3], "min_included": [3]}, "hides behind one other"),
    ],
)
def test_what_weakens_the_sums_is_said_loudly(edited, sums, changes, expected):
    values = sums(**changes)
    said = aggregation.warnings(parsed(values))
    if expected is None:
        assert said == ()
        return
    assert any(expected in text for text in said)
    page = write_report(edited(lambda record: record.update(secure_aggregation=values))).read_text(encoding="utf-8")
    assert re.search(r'class="prose warning"><p>[^<]*' + re.escape(expected), page)


def test_three_honest_hospitals_are_no_warning(sums):
    assert aggregation.warnings(parsed(sums(min_included=[4]))) == ()


def test_groups_are_listed(edited, sums):
    text = words(edited(lambda record: record.update(secure_aggregation=sums(**SIX))), "secure-aggregation")
    assert (
        "The groups Hospitals Needed to open a sum Drop-outs survived a, b and c 2 of 3 1 d, e and f 2 of 3 0" in text
    )
    assert "Groups are combined by mean" in text


@pytest.mark.parametrize(
    "wrong",
    [
        {"thresholds": [3]},  # 2 x 3 is not more than 5 + 1
        {"min_included": [3]},  # below the threshold
        {"min_included": [6]},
        {"thresholds": [4, 4]},
        {"groups": []},
        {"groups": [["alone"]]},
        {"modulus_bits": 16},
        {"resolution": 0.0},
        {"server_seconds": -1.0},
        {"combine": "sum"},
    ],
)
def test_sums_that_cannot_be_are_a_damaged_record(edited, sums, wrong):
    with pytest.raises(RunError, match=r"damaged.*secure_aggregation"):
        read_run(edited(lambda record: record.update(secure_aggregation=sums(**wrong))))


@pytest.mark.parametrize("key", ["groups", "thresholds", "colluding", "clipped", "dropped", "server_seconds"])
def test_sums_with_a_piece_missing_are_a_damaged_record(edited, sums, key):
    values = sums()
    del values[key]
    with pytest.raises(RunError, match=f"secure_aggregation.{key}: missing"):
        read_run(edited(lambda record: record.update(secure_aggregation=values)))


def test_shared_noise_without_a_secure_sum_is_a_damaged_record(private_run, shared_claim, sums):
    with pytest.raises(RunError, match="privacy: without secure aggregation"):
        read_run(private_run(shared_claim()))
    assert read_run(private_run(shared_claim(), sums())).record.privacy.mode == "distributed"


def test_both_epsilons_stand_side_by_side(private_run, shared_claim, sums):
    text = words(private_run(shared_claim(), sums()), "privacy")
    for part in (
        "The server with up to 1 hospital on its side, and anyone who sees the model after every step",
        "The server alone The server with 1 hospital on its side Epsilon at delta 1e-5 2.53 2.99",
        "so many times as probable at most 12.5 at most 19.8",  # exp(2.5247878), exp(2.98112)
        "Anyone who sees the model after every step the published weights 2.53",
        "The server sums over at least 4 hospitals, and the published weights 2.53",
        "Up to 1 other hospital, with the server or without it",
        "share of the noise subtracted 2.99",
        "More than 1 other hospital together the same, with more of the noise subtracted no promise",
        "The patient's own hospital the images, the labels and its own sums without noise no promise",
        "at least 3 hospitals must add their noise to every sum",
    ):
        assert part in text, part
    assert "other parties of the training" not in text


def test_where_no_hospital_may_collude_the_larger_epsilon_is_stated_apart(shared_claim, sums):
    values = sums(colluding=0, thresholds=[3], min_included=[3])
    claim, parts = Claim.model_validate(shared_claim()), parsed(values)
    table = trust.two_epsilons(claim, parts)
    assert [cell.text for cell in table.rows[0][1:]] == ["2.53", "2.99"]
    (who,) = trust.trust_table(claim, parts)
    assert {row[0].text: row[2].text for row in who.rows}["Another hospital"] == "2.99"
    assert "anyone outside the hospitals" in claim_wording.sentence(claim, 0)
    assert "but not against other hospitals" in claim_wording.short(claim, 0)


def test_a_stamped_claim_of_shared_noise_promises_nothing(private_run, shared_claim, sums):
    values = shared_claim(stamp="NOT PRIVATE", stamp_reasons=["The noise came from a seed."])
    text = words(private_run(values, sums()), "privacy")
    assert "As calculated against whom; no promise for this run" in text
    for promise in ("at most", "Who sees what", "It holds against"):
        assert promise not in text


def test_the_head_names_both_epsilons(private_run, shared_claim, sums):
    record = read_run(private_run(shared_claim(), sums())).record
    expected = (
        "Differential privacy for one patient at delta 1e-5: epsilon 2.53 against the server alone, 2.99 against the "
        "server with 1 hospital on its side."
    )
    assert wording.headline(record)[-1] == expected
    assert wording.protection_notice(record).startswith(expected)


@pytest.mark.parametrize(
    ("count", "kind", "expected"), [(1, "", "1 hospital"), (1200, "other", "1,200 other hospitals")]
)
def test_hospitals_are_counted(count, kind, expected):
    assert claim_wording.hospitals(count, kind) == expected


def test_names_of_sites_stay_text(edited, sums):
    hostile = "<script>alert('x')</script>"
    values = sums(groups=[[hostile, "b", "c", "d", "e"]], dropped={hostile: 1})
    folder = edited(lambda record: record.update(secure_aggregation=values))
    assert "<script" not in write_report(folder).read_text(encoding="utf-8")


def test_numbers_of_the_page_are_those_of_the_record(private_run, shared_claim, sums):
    folder = private_run(shared_claim(), sums(sums_opened=4321, dropped={"site-1": 2, "site-4": 1}))
    text = words(folder, "secure-aggregation")
    assert "opened 4,321 sums" in text
    assert "3, by 2 hospitals" in text
    assert json.loads((folder / "record.json").read_text(encoding="utf-8"))["secure_aggregation"]["sums_opened"] == 4321
