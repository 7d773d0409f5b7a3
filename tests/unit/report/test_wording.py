import pytest

from medveil.report import wording
from medveil.report.reading import read_run
from medveil.report.record import Quantity


def record_of(folder):
    return read_run(folder).record


def test_headline_of_a_classification_run(classification_run):
    trained, reached, compared = wording.headline(record_of(classification_run))
    assert trained == (
        "A model that tells apart normal and pneumonia was trained across 3 sites, "
        "which were simulated on one computer."
    )
    assert reached == (
        "On 624 images of 312 patients it had not seen, it reached AUC 0.94 (95 % interval 0.92 to 0.96): "
        "it ranks two images of different kinds correctly 94 times in 100."
    )
    assert compared == (
        "Pooling all data in one place gave 0.95, 0.01 higher and inside that interval; "
        "each site training alone gave 0.89, 0.05 lower and outside that interval."
    )


def test_headline_of_a_segmentation_run(segmentation_run):
    trained, reached, compared = wording.headline(record_of(segmentation_run))
    assert trained.startswith("A model that outlines liver and spleen was trained across 3 sites")
    assert reached == (
        "On 24 volumes it had not seen, each counted as one patient, "
        "it reached Dice 0.87 (95 % interval 0.85 to 0.89): 1 would be a perfect overlap with the reference outline."
    )
    assert compared == ("It was not compared with pooling all data in one place or with each site training alone.")


def test_headline_of_a_real_network(edited):
    record = record_of(edited(lambda record: record.update(transport="engine")))
    assert "that kept their images to themselves" in wording.headline(record)[0]
    assert not any("simulated" in text for text in wording.limits(record))


def test_an_undefined_figure_is_said_to_be_unknown(edited):
    def change(record):
        record["test"]["auc"] = {"value": None, "reason": "no image of class 1"}

    sentences = wording.headline(record_of(edited(change)))
    assert sentences[1].endswith("its AUC is not known: no image of class 1.")
    assert len(sentences) == 2


def test_a_missing_interval_is_said_to_be_missing(edited):
    record = record_of(edited(lambda record: record["test"].update(auc=0.9)))
    sentences = wording.headline(record)
    assert "0.90 (no interval)" in sentences[1]
    assert "that interval" not in sentences[2]


@pytest.mark.parametrize(
    ("central", "expected"),
    [(0.945, "0.94, about the same"), (0.99, "0.05 higher and outside"), (0.93, "0.01 lower and inside")],
)
def test_differences_are_said_both_ways(edited, central, expected):
    record = record_of(edited(lambda record: record["references"].update(central={"auc": central})))
    assert expected in wording.headline(record)[2]


def test_phantoms_come_with_a_notice_and_real_images_without(segmentation_run, edited):
    assert "say nothing about patients" in wording.phantom_notice(record_of(segmentation_run))
    assert wording.phantom_notice(record_of(edited(lambda record: None))) is None


def test_protection_notice_says_what_was_missing(classification_run):
    notice = wording.protection_notice(record_of(classification_run))
    assert notice.startswith("No differential privacy, no secure aggregation was active")


def test_protection_notice_does_not_deny_what_was_active(edited, claim):
    active = edited(lambda record: record["protection"].update(active=["Secure aggregation: sums only."]))
    assert "secure aggregation" not in wording.protection_notice(record_of(active))
    private = edited(lambda record: record.update(privacy=claim()))
    assert "No differential privacy" not in wording.protection_notice(record_of(private))


def test_limits_follow_the_record(classification_run, segmentation_run, edited):
    real, phantom = record_of(classification_run), record_of(segmentation_run)
    assert not any("synthetic" in text for text in wording.limits(real))
    assert "synthetic" in wording.limits(phantom)[0]
    assert any("24 patients" in text for text in wording.limits(phantom))
    assert any("same sources only" in text for text in wording.limits(phantom))
    assert any(text.startswith("Every image or volume counts as one patient") for text in wording.limits(phantom))
    assert not any(text.startswith("Every image or volume counts") for text in wording.limits(real))
    lone = record_of(edited(lambda record: record.update(external=[{"name": "D", "test": {"auc": 0.9}}])))
    assert not any("same sources only" in text for text in wording.limits(lone))


def test_numbers_and_intervals():
    assert wording.number(0.94251, "auc") == "0.943"
    assert wording.number(-0.25, "mcc") == "\N{MINUS SIGN}0.250"
    assert wording.number(None) == "not measured"
    assert wording.interval(Quantity(value=3, low=2, high=4.26), "hd95_mm").split() == ["2.0", "to", "4.3", "mm"]
    assert wording.interval(Quantity(value=3, reason="one patient")) == "one patient"


def test_unknown_metrics_are_shown_under_their_own_name():
    assert wording.metric("new_score").label == "New score"
    assert wording.ordered({"new_score": Quantity(), "dice": Quantity(), "auc": Quantity()}) == [
        "auc",
        "dice",
        "new_score",
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(None, "not measured"), (0, "0 B"), (999_999, "1000.0 kB"), (3.2e12, "3200.0 GB")]
)
def test_sizes(value, text):
    assert wording.size(value) == text


@pytest.mark.parametrize(("value", "text"), [(None, "not measured"), (59.96, "60.0 s"), (3600, "1 h 0 min")])
def test_durations(value, text):
    assert wording.seconds(value) == text
