import json

import numpy as np
import pytest

from medveil.errors import RunError
from medveil.report.reading import read_run

PATIENT = "Jane-Doe-1961"


def test_a_whole_run_is_read(classification_run):
    run = read_run(classification_run)
    assert run.record.test.metrics["auc"].value == 0.943
    assert run.record.test.per_site["site-3"]["auc"].value == 0.917
    assert run.record.test.per_subgroup["sex"]["male"]["sensitivity"].reason == "no image of class 1"
    assert run.record.references.local_only.per_site["site-2"]["auc"].value == 0.897
    assert run.record.references.central.metrics["auc"].value == 0.952
    assert run.record.external[0].fall["auc"].value == 0.072
    assert {step.arm for step in run.steps} >= {"federated", "central", "local_only/site-1"}
    assert run.examples.images.shape == (12, 96, 96)


def test_only_the_record_is_needed(classification_run):
    (classification_run / "metrics.jsonl").unlink()
    (classification_run / "examples.npz").unlink()
    run = read_run(classification_run)
    assert run.steps is None
    assert run.examples is None


def test_a_folder_without_record_is_refused(tmp_path):
    with pytest.raises(RunError, match="holds no record"):
        read_run(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"schema_version": 1}', '"text"'])
def test_a_damaged_record_is_refused(tmp_path, content):
    (tmp_path / "record.json").write_text(content, encoding="utf-8")
    with pytest.raises(RunError):
        read_run(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "record.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match="cannot be read"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(task=PATIENT),
        lambda record: record["data"].update(kind=PATIENT),
        lambda record: record["test"].update(auc=PATIENT),
        lambda record: record["test"].update(auc={"value": float("nan")}),
        lambda record: record["test"].update(per_site=[PATIENT]),
        lambda record: record["details"]["roc"].update(fpr=[0.0, 1.0]),
        lambda record: record.pop("name"),
    ],
)
def test_a_wrong_record_is_refused_without_quoting_it(edited, change):
    with pytest.raises(RunError, match="damaged") as caught:
        read_run(edited(change))
    assert PATIENT not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_newer_schema_is_refused(edited):
    with pytest.raises(RunError, match="newer medveil"):
        read_run(edited(lambda record: record.update(schema_version=99)))


def test_unknown_keys_are_left_alone(edited):
    def change(record):
        record["audit"] = {"canaries": 3}
        record["data"]["partition"] = "by site"

    assert read_run(edited(change)).record.name == "Pneumonia on chest X-rays"


def test_null_parts_are_parts_not_measured(edited):
    def change(record):
        record.update(references=None, cost=None, details=None, model=None, training=None, external=None)

    run = read_run(edited(change))
    assert run.record.references.central is None
    assert run.record.cost.seconds is None


def test_a_damaged_line_of_history_is_refused_by_number(classification_run):
    lines = (classification_run / "metrics.jsonl").read_text().splitlines()
    lines[4] = lines[4][:20] + PATIENT
    (classification_run / "metrics.jsonl").write_text("\n".join(lines))
    with pytest.raises(RunError, match="line 5") as caught:
        read_run(classification_run)
    assert PATIENT not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        {"images": np.zeros((2, 4, 4))},
        {"images": np.zeros((2, 4, 4)), "targets": np.zeros(3), "predictions": np.zeros((2, 2))},
        {"images": np.zeros((2, 4)), "targets": np.zeros(2), "predictions": np.zeros((2, 2))},
        {"images": np.full((2, 4, 4), np.nan), "targets": np.zeros(2), "predictions": np.zeros((2, 2))},
        {"images": np.zeros((2, 4, 4)), "targets": np.zeros((2, 4, 4)), "predictions": np.zeros((2, 4, 4))},
        {"images": np.array([{}]), "targets": np.zeros(1), "predictions": np.zeros((1, 2))},
    ],
)
def test_wrong_examples_are_refused(classification_run, content):
    np.savez(classification_run / "examples.npz", **content)
    with pytest.raises(RunError, match="example pictures"):
        read_run(classification_run)


def test_truncated_examples_are_refused(classification_run):
    path = classification_run / "examples.npz"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(RunError, match="example pictures"):
        read_run(classification_run)


def test_record_of_a_study_may_hold_more_reasons(edited):
    def change(record):
        record["test"]["auc"] = {"value": None, "low": None, "high": None, "reason": "no image of class 1"}

    found = read_run(edited(change)).record.test.metrics["auc"]
    assert json.loads(found.model_dump_json())["reason"] == "no image of class 1"
