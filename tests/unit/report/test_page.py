"""The page as a browser sees it, read with the standard library's HTML parser."""

import json
import re
from html.parser import HTMLParser

import pytest

from medveil.errors import RunError
from medveil.report.page import write_report

VOID = {"meta", "img", "br"}
HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>$\\alpha&amp;"


class Seen(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not close."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.open = [], [], []
        self.feed(page)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text)).replace("\N{NO-BREAK SPACE}", " ")


def seen(folder):
    return Seen(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(params=["classification", "segmentation"])
def page(request, pages):
    return pages[request.param]


def test_the_page_loads_nothing_and_runs_nothing(page):
    parsed = Seen(page)
    names = {name for name, _ in parsed.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form", "audio", "video"}
    for _, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        for name in ("href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")
    assert "@import" not in page
    assert not [address for address in re.findall(r"url\(([^)]*)\)", page) if not address.startswith("#")]
    assert "http:" not in page
    assert "https:" not in page


def test_sections_stand_in_the_agreed_order(pages):
    titles = re.findall(r"<h2[^>]*>([^<]+)</h2>", pages["classification"])
    assert titles == [
        "How it compares",
        "What was protected, and what was not",
        "Privacy: what the model may reveal",
        "Red team: what attacks get out of it",
        "Results on the test patients",
        "By site and by subgroup",
        "How the training went",
        "Ranking, probabilities and decisions",
        "Examples",
        "On data from elsewhere",
        "Model and training",
        "What it cost",
        "The data",
        "How to repeat it",
        "What these figures do not say",
    ]


def test_figures_reach_the_page(pages):
    words = Seen(pages["classification"]).words()
    for text in (
        "0.922 to 0.960",  # the interval of the AUC
        "0.952",  # all data pooled
        "0.864",  # site 3 alone
        "adamw, learning rate 0.001",
        "a patient, as the column gives it, is one subject",
        "0.072",  # the fall elsewhere
        "no image of class 1",
        "threshold 0.413 (largest Youden's J on the validation images)",
        "23 min 4 s",
        "47.5 MB",
        "The file ends before its pixels do",
        "12 across parts, 20 within a part, 12 dropped (policy: drop)",
        "CC BY 4.0",
        "7f0c5a93d2e14b6688d1c6d6a7d30e4f9e6fb3dd4c2a7d5513a9a1b20c3344ef",
        "No differential privacy, no secure aggregation was active",
        "Treat this page like the patients' other records",
    ):
        assert text in words, text


def test_segmentation_figures_reach_the_page(pages):
    words = Seen(pages["segmentation"]).words()
    for text in ("liver", "9.8 mm", "6.8 to 12.2 mm", "outlines closer than 2 mm agree", "In 3 cases only"):
        assert text in words, text
    assert "Treat this page like the patients' other records" not in words


def test_a_phantom_page_says_so_first(pages):
    parsed = Seen(pages["segmentation"])
    body = parsed.words().split("medveil report", 2)[1]
    assert body.strip().startswith("These are synthetic phantom images")


def test_a_real_page_does_not_speak_of_phantoms(pages):
    assert "phantom" not in Seen(pages["classification"]).words()


def test_what_was_not_measured_is_said(classification_run, tmp_path):
    record = json.loads((classification_run / "record.json").read_text())
    bare = {key: record[key] for key in ("schema_version", "name", "task")}
    bare |= {"data": {"kind": "real", "name": "X"}, "test": {}}
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "record.json").write_text(json.dumps(bare))
    words = seen(folder).words()
    for text in (
        "its AUC is not known: not measured",
        "It was not compared with pooling all data in one place or with each site training alone",
        "Test figures: not measured",
        "Results by site and by subgroup: not measured",
        "Learning curves: not measured",
        "ROC curve, Calibration, Confusion table: not measured",
        "Example pictures: not measured",
        "A test on data from elsewhere: not measured",
        "Data by site: not measured",
    ):
        assert text in words, text
    assert "None" not in words


def test_hostile_names_stay_text(edited):
    def change(record):
        record["name"] = HOSTILE
        record["data"].update(class_names=["normal", HOSTILE], name=HOSTILE, citation=HOSTILE)
        record["data"]["sites"][0].update(site=HOSTILE, label_counts={HOSTILE: 3})
        record["test"]["per_site"][HOSTILE] = {"auc": 0.9}
        record["test"]["per_subgroup"][HOSTILE] = {HOSTILE: {"auc": 0.9}}
        record["references"]["local_only"]["per_site"][HOSTILE] = {"auc": 0.5}
        record["external"][0].update(name=HOSTILE, relation=HOSTILE)
        record["cost"]["bytes_sent_per_site"][HOSTILE] = 1
        record["training"][HOSTILE] = {HOSTILE: [HOSTILE]}
        record["artifacts"][HOSTILE] = HOSTILE

    folder = edited(change)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"arm": "local_only/<script>x</script>$", "round": 1, "train_loss": 0.4, "validation": {}}\n')
    parsed = seen(folder)
    assert not parsed.named("script")
    assert all(image["src"].startswith("data:") for image in parsed.named("img"))
    assert not [attributes for _, attributes in parsed.tags if "onerror" in attributes]
    assert HOSTILE in "".join(parsed.text)


def test_the_same_run_gives_the_same_bytes(pages, classification_run, segmentation_run):
    assert write_report(classification_run).read_text(encoding="utf-8") == pages["classification"]
    assert write_report(segmentation_run).read_text(encoding="utf-8") == pages["segmentation"]


def test_anchors_are_unique_and_links_lead_somewhere(page):
    parsed = Seen(page)
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {
        attributes[name][1:] for _, attributes in parsed.tags for name in ("href", "xlink:href") if name in attributes
    }
    assert targets <= set(ids)


def test_readers_who_cannot_see_get_everything(page):
    parsed = Seen(page)
    assert parsed.named("html")[0]["lang"] == "en-GB"
    assert parsed.named("img")
    assert all(image["alt"] for image in parsed.named("img"))
    assert all(heading.get("scope") in {"col", "row"} for heading in parsed.named("th"))
    assert len(parsed.named("caption")) == len(parsed.named("table"))
    assert all(svg["aria-hidden"] == "true" for svg in parsed.named("svg"))
    described = [attributes for _, attributes in parsed.tags if attributes.get("role") == "img"]
    assert len(described) == len(parsed.named("svg"))
    assert all(len(attributes["aria-label"]) > 40 for attributes in described)


def luminance(colour):
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_has_enough_contrast_in_light_dark_and_print(pages):
    """WCAG 2.1 level AA: 4.5 to 1 for text, 3 to 1 for lines of charts."""
    schemes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6}|#[0-9a-f]{3});", block))
        for block in re.findall(r":root \{(.*?)\}", pages["classification"], re.DOTALL)
    ]
    assert len(schemes) == 3
    for scheme in schemes:
        colours = {name: c if len(c) == 7 else "#" + "".join(2 * d for d in c[1:]) for name, c in scheme.items()}
        for name in ("ink", "muted", "main", "good", "bad"):
            assert contrast(colours[name], colours["paper"]) >= 4.5, name
            assert contrast(colours[name], colours["card"]) >= 4.5, name
        assert contrast(colours["warning-ink"], colours["warning-paper"]) >= 4.5
        for name in ("second", "third"):
            assert contrast(colours[name], colours["card"]) >= 3, name


def test_the_page_goes_where_it_is_asked(classification_run, tmp_path):
    assert write_report(classification_run) == classification_run / "report.html"
    target = tmp_path / "elsewhere.html"
    assert write_report(classification_run, target) == target
    assert target.stat().st_size > 50_000


def test_a_page_that_cannot_be_written_is_a_run_error(classification_run, tmp_path):
    with pytest.raises(RunError, match="cannot be written"):
        write_report(classification_run, tmp_path / "no" / "such" / "folder.html")
