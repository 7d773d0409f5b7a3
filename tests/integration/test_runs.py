"""Whole runs on phantoms: both tasks, every algorithm, the record against its schema."""

import json
import math
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import load_file

from medveil.errors import ManifestError, ResumeError, RunError
from medveil.study.folder import RunFolder
from medveil.study.manifest import verify_manifest
from medveil.study.train import train

SCHEMA = Path(__file__).parents[2] / "docs" / "reference" / "record.schema.json"


def _check_record(record):
    jsonschema.validate(record, json.loads(SCHEMA.read_text(encoding="utf-8")))


def test_classification(small_plan, tmp_path):
    out = tmp_path / "run"
    record = train(small_plan(), out)
    _check_record(record)
    assert record == json.loads((out / "record.json").read_text())
    assert record["data"]["kind"] == "phantom"
    assert record["privacy"] is None
    auc = record["test"]["auc"]
    assert auc["low"] <= auc["value"] <= auc["high"]
    assert set(record["test"]["per_site"]) == {"site-1", "site-2", "site-3"}
    assert set(record["test"]["per_subgroup"]["scanner"]) == {"scanner-1", "scanner-2", "scanner-3"}
    assert 0 <= record["references"]["central"]["auc"] <= 1
    assert len(record["references"]["local_only"]["per_site"]) == 3
    parameters = record["model"]["parameters"]
    for sent in record["cost"]["bytes_sent_per_site"].values():
        assert 3 * 4 * parameters < sent < 1.05 * 3 * 4 * parameters
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {row["arm"] for row in rows} == {"federated", "central", *(f"local_only/site-{n}" for n in (1, 2, 3))}
    assert verify_manifest(out)
    for path in record["artifacts"].values():
        assert (out / path).exists()


def test_segmentation(small_masks, tmp_path):
    record = train(small_masks(), tmp_path / "run")
    _check_record(record)
    assert set(record["details"]["per_class"]) == {"upper", "lower"}
    assert 0 <= record["test"]["dice"]["value"] <= 1
    pictures = np.load(tmp_path / "run" / "examples.npz")
    assert pictures["images"].shape == pictures["targets"].shape == pictures["predictions"].shape


def test_segmentation_of_slices_is_scored_by_volume(small_masks, tmp_path):
    plan = small_masks(
        "data.source.size=[16,16,16]",
        "data.source.subjects=12",
        "data.preprocess={slices={axis=0}}",
        "federation.rounds=1",
        "references.central=false",
        "references.local_only=false",
    )
    record = train(plan, tmp_path / "run")
    assert record["details"]["num_examples"] < record["data"]["examples"]["test"]
    assert record["data"]["examples"]["test"] == 16 * record["details"]["num_examples"]


def test_3d_segmentation(small_masks, tmp_path):
    plan = small_masks(
        "data.source.size=[16,16,16]", "data.source.subjects=12", "federation.rounds=1", "references.local_only=false"
    )
    record = train(plan, tmp_path / "run")
    assert record["model"]["input_shape"] == [1, 16, 16, 16]
    assert record["test"]["dice"]["value"] is not None


@pytest.mark.parametrize(
    "algorithm",
    [
        '{kind="fedprox", mu=0.1, local_epochs=1}',
        '{kind="fedsgd"}',
        '{kind="fedavg", local_steps=2, server={kind="adam", lr=0.01}}',
    ],
)
def test_other_algorithms_train(small_plan, tmp_path, algorithm):
    plan = small_plan(f"federation.algorithm={algorithm}", "federation.rounds=6", "references.local_only=false")
    record = train(plan, tmp_path / "run")
    assert record["training"]["rounds_run"] == 6
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["validation"]["loss"] for row in rows if row["arm"] == "federated"]
    assert losses[-1] < min(losses[0], math.log(2)) - 0.02  # better than at first, and than one half for every image


def test_a_monai_network_with_batch_statistics_needs_a_policy(small_plan, tmp_path):
    arguments = "spatial_dims=2, in_channels=1, out_channels=2, block_config=[1,1], init_features=8, growth_rate=4"
    text = 'model={kind="monai", name="DenseNet121", arguments={' + arguments + "}}"
    from medveil.errors import UnsupportedModelError

    with pytest.raises(UnsupportedModelError, match="running statistics"):
        train(small_plan(text, "data.source.size=[32,32]"), tmp_path / "a")
    plan = small_plan(
        text,
        "data.source.size=[32,32]",
        'federation.buffers="average"',
        "federation.rounds=1",
        "references.local_only=false",
    )
    assert train(plan, tmp_path / "b")["training"]["rounds_run"] == 1


def test_initial_weights_from_a_file(small_plan, tmp_path):
    first = tmp_path / "first"
    quick = ("federation.rounds=1", "references.central=false", "references.local_only=false")
    train(small_plan(*quick), first)
    still = small_plan(
        *quick, f"initial_weights='{first / 'weights.safetensors'}'", 'training.optimiser={kind="sgd", lr=1e-30}'
    )
    train(still, tmp_path / "second")
    before, after = load_file(first / "weights.safetensors"), load_file(tmp_path / "second" / "weights.safetensors")
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor)


def test_a_finished_run_is_not_repeated(small_plan, tmp_path):
    plan = small_plan("federation.rounds=1", "references.central=false", "references.local_only=false")
    first = train(plan, tmp_path / "run")
    assert train(plan, tmp_path / "run") == first


def test_a_folder_belongs_to_one_plan(small_plan, tmp_path):
    quick = ("federation.rounds=1", "references.central=false", "references.local_only=false")
    train(small_plan(*quick), tmp_path / "run")
    with pytest.raises(ResumeError, match="another plan"):
        train(small_plan(*quick, "seed=4"), tmp_path / "run")


def test_performance_settings_change_neither_hash_nor_weights(small_plan, tmp_path):
    quick = ("references.central=false", "references.local_only=false", "federation.rounds=2")
    one = small_plan(*quick, "performance.workers=1", "performance.eval_batch_size=7")
    three = small_plan(*quick, "performance.workers=3")
    assert one.digest() == three.digest()
    train(one, tmp_path / "one")
    train(three, tmp_path / "three")
    assert (tmp_path / "one" / "weights.safetensors").read_bytes() == (
        tmp_path / "three" / "weights.safetensors"
    ).read_bytes()


def test_the_manifest_names_a_changed_file(small_plan, tmp_path):
    out = tmp_path / "run"
    train(small_plan("federation.rounds=1", "references.central=false", "references.local_only=false"), out)
    card = out / "model_card.md"
    card.write_text(card.read_text() + "better than it is\n")
    with pytest.raises(ManifestError, match="model_card"):
        verify_manifest(out)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["plan_hash"] = "0" * 64
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ManifestError, match="signature"):
        verify_manifest(out)


def test_one_process_a_folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.claim(), pytest.raises(RunError, match="Another process"), RunFolder(tmp_path / "run").claim():
        pass
