import re
from xml.etree import ElementTree as ET

import pytest

from medveil.report import figures
from medveil.report.record import Calibration, Roc

LINES = [
    ("third", [(1, 0.5), (2, 0.6)]),
    ("second", [(1, 0.6), (2, 0.8)]),
    ("main", [(1, 0.55), (2, 0.75)]),
]


def charts():
    return {
        "curves": figures.learning_curves(LINES, label="AUC", name="curves", best_round=2),
        "roc": figures.roc(Roc(fpr=(0, 0.2, 1), tpr=(0, 0.9, 1)), name="roc", operating_point=(0.2, 0.9)),
        "calibration": figures.calibration(
            Calibration(confidence=(0.1, 0.9), accuracy=(0.2, 0.8), count=(5, 50)), name="calibration"
        ),
    }


@pytest.mark.parametrize("name", ["curves", "roc", "calibration"])
def test_charts_are_ready_for_the_page(name):
    svg = str(charts()[name])
    root = ET.fromstring(svg.replace("xlink:href", "href"))
    assert root.tag == "svg"
    assert "viewBox" in root.attrib
    assert "width" not in root.attrib
    assert all(element.get("id", name).startswith(name) for element in root.iter())
    assert "metadata" not in svg
    assert "http" not in svg


@pytest.mark.parametrize("name", ["curves", "roc", "calibration"])
def test_every_colour_follows_the_page(name):
    svg = str(charts()[name])
    assert re.findall(r"#[0-9a-fA-F]{6}", svg) == []
    assert "var(--main)" in svg


def test_text_stays_text():
    assert "False alarms" in str(charts()["roc"])
    assert "best: round 2" in str(charts()["curves"])


def test_the_same_chart_has_the_same_bytes():
    assert charts() == charts()


def test_a_curve_passes_through_its_points():
    """Rounds 1, 2 and 3 with the values 0, 1 and 0 draw a peak in the middle."""
    svg = str(figures.learning_curves([("main", [(1, 0.0), (2, 1.0), (3, 0.0)])], label="x", name="peak"))
    (path,) = [match for match in re.findall(r'<path d="([^"]+)"[^>]*var\(--main\)', svg) if match.count("L") == 2]
    points = [tuple(map(float, pair.split())) for pair in re.findall(r"[ML] ([\d.]+ [\d.]+)", path)]
    (left, low), (middle, high), (right, last) = points
    assert middle == pytest.approx((left + right) / 2, abs=0.01)
    assert high < low == pytest.approx(last)  # downwards is larger in SVG


def test_one_round_is_drawn_as_a_dot():
    svg = str(figures.learning_curves([("main", [(1, 0.4)])], label="x", name="one"))
    assert "<use" in svg
