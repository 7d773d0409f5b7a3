"""Run folders as a study would leave them, with figures that are made up."""

import json

import numpy as np
import pytest
from scipy import ndimage

from medveil.report.page import write_report


def quantity(value, half):
    return {"value": value, "low": round(value - half, 4), "high": round(value + half * 0.8, 4), "reason": None}


def smooth(generator, size=96):
    field = ndimage.gaussian_filter(generator.normal(size=(size, size)), 6)
    return (field - field.min()) / np.ptp(field)


def classification_record():
    sites = {"site-1": 0.951, "site-2": 0.938, "site-3": 0.917}
    return {
        "schema_version": 1,
        "medveil_version": "0.1.0",
        "name": "Pneumonia on chest X-rays",
        "task": "classification",
        "plan_hash": "7f0c5a93d2e14b6688d1c6d6a7d30e4f9e6fb3dd4c2a7d5513a9a1b20c3344ef",
        "created": "2025-03-04T10:22:31+00:00",
        "transport": "in-process",
        "data": {
            "kind": "real",
            "name": "Chest X-ray collection",
            "licence": "CC BY 4.0",
            "subject_rule": "a patient, as the column gives it, is one subject",
            "citation": "Author et al., A collection of chest X-rays, 2018.",
            "class_names": ["normal", "pneumonia"],
            "subjects": {"train": 2810, "validation": 401, "test": 312},
            "examples": {"train": 4708, "validation": 524, "test": 624},
            "sites": [
                {
                    "site": site,
                    "subjects": 900 + 30 * k,
                    "examples": 1500 + 70 * k,
                    "label_counts": {"normal": 400 + 20 * k, "pneumonia": 1100 + 50 * k},
                }
                for k, site in enumerate(sites)
            ],
            "rejected": [
                {"reason": "truncated", "detail": "The file ends before its pixels do", "count": 3},
                {"reason": "shape", "detail": "The image has a shape that no model here reads", "count": 1},
            ],
            "duplicates": {"policy": "drop", "across_splits": 12, "within_splits": 20, "dropped": 12},
        },
        "model": {
            "kind": "resnet",
            "parameters": 698_434,
            "architecture_hash": "a1d0ce11b5a5e7cbbcd8",
            "input_shape": [1, 64, 64],
        },
        "training": {
            "algorithm": "fedavg",
            "weighting": "examples",
            "rounds": 20,
            "rounds_run": 17,
            "best_round": 12,
            "stopped_early": True,
            "optimiser": {"kind": "adamw", "learning_rate": 0.001},
            "lost_sites": {},
        },
        "test": {
            "auc": quantity(0.943, 0.021),
            "average_precision": quantity(0.958, 0.02),
            "mcc": quantity(0.721, 0.06),
            "sensitivity": quantity(0.936, 0.03),
            "specificity": quantity(0.769, 0.06),
            "balanced_accuracy": quantity(0.853, 0.032),
            "calibration_error": quantity(0.061, 0.018),
            "per_site": {
                site: {
                    "auc": quantity(value, 0.036),
                    "sensitivity": quantity(value - 0.02, 0.05),
                    "specificity": quantity(value - 0.15, 0.08),
                }
                for site, value in sites.items()
            },
            "per_subgroup": {
                "sex": {
                    "female": {"auc": quantity(0.947, 0.03), "sensitivity": quantity(0.93, 0.04)},
                    "male": {
                        "auc": quantity(0.939, 0.03),
                        "sensitivity": {"value": None, "reason": "no image of class 1"},
                    },
                }
            },
        },
        "details": {
            "threshold": 0.4127,
            "threshold_source": "largest Youden's J on the validation images",
            "confusion": [[180, 54], [25, 365]],
            "roc": {
                "fpr": [0, 0, 0.02, 0.05, 0.1, 0.16, 0.23, 0.35, 0.55, 0.8, 1],
                "tpr": [0, 0.31, 0.55, 0.7, 0.82, 0.89, 0.936, 0.965, 0.985, 0.995, 1],
            },
            "calibration": {
                "confidence": [0.04, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.96],
                "accuracy": [0.02, 0.1, 0.21, 0.28, 0.4, 0.47, 0.58, 0.7, 0.83, 0.97],
                "count": [110, 42, 25, 21, 18, 20, 24, 38, 74, 252],
            },
            "num_subjects": 312,
            "num_examples": 624,
            "bootstrap": {"resamples": 1000, "level": 0.95},
        },
        "external": [
            {
                "name": "Hospital D",
                "relation": "another hospital with another scanner, adults instead of children",
                "test": {"auc": quantity(0.871, 0.04)},
                "num_subjects": 180,
                "fall": {"auc": 0.072},
            }
        ],
        "references": {
            "central": {
                "auc": 0.952,
                "average_precision": 0.966,
                "mcc": 0.74,
                "sensitivity": 0.94,
                "specificity": 0.79,
            },
            "local_only": {
                "auc": 0.894,
                "sensitivity": 0.9,
                "per_site": {"site-1": {"auc": 0.921}, "site-2": {"auc": 0.897}, "site-3": {"auc": 0.864}},
            },
        },
        "cost": {
            "seconds": 1384.2,
            "seconds_by_part": {"data": 41.0, "federated": 702.1, "references": 588.0, "test": 53.1},
            "peak_memory_mb": 1834.0,
            "bytes_sent_per_site": dict.fromkeys(sites, 47_500_000),
            "bytes_received_per_site": dict.fromkeys(sites, 47_490_000),
            "rounds": 17,
            "device": "cpu",
            "threads": 2,
        },
        "privacy": None,
        "protection": {
            "active": ["Images stayed at their sites; model updates and counts of examples left them."],
            "inactive": [
                "Differential privacy: none. The model may remember individual patients.",
                "Secure aggregation: none. The coordinator saw every site's update in the clear.",
                "Encrypted inference: none. Whoever runs the model sees the image.",
            ],
        },
        "artifacts": {"weights": "model.safetensors", "plan": "plan.json"},
    }


def segmentation_record():
    record = classification_record()
    sites = {"site-1": 0.884, "site-2": 0.869, "site-3": 0.851}
    record.update(name="Liver and spleen on CT", task="segmentation", references={"central": None, "local_only": None})
    record["data"].update(
        kind="phantom",
        name="Abdominal phantoms",
        class_names=["background", "liver", "spleen"],
        rejected=[],
        subjects={"train": 60, "validation": 12, "test": 24},
        examples={"train": 480, "validation": 96, "test": 192},
    )
    for site in record["data"]["sites"]:
        site.update(subjects=20, examples=160, label_counts={})
    record["test"] = {
        "dice": quantity(0.871, 0.024),
        "surface_dice": quantity(0.802, 0.041),
        "hd95_mm": quantity(7.4, 1.9),
        "per_site": {
            site: {
                "dice": quantity(value, 0.04),
                "surface_dice": quantity(value - 0.07, 0.05),
                "hd95_mm": quantity(7, 2),
            }
            for site, value in sites.items()
        },
    }
    record["details"] = {
        "per_class": {
            "liver": {"dice": quantity(0.93, 0.02), "surface_dice": quantity(0.87, 0.03), "hd95_mm": quantity(5, 1)},
            "spleen": {"dice": quantity(0.81, 0.04), "surface_dice": quantity(0.73, 0.06), "hd95_mm": quantity(9.8, 3)},
        },
        "num_subjects": 24,
        "num_examples": 24,
        "bootstrap": {"resamples": 1000, "level": 0.95},
        "distance_unit": "mm",
        "surface_tolerance": 2.0,
        "one_sided": 3,
    }
    record["external"] = []
    return record


def history(metric):
    arms = {"federated": 0.94, "central": 0.95, "local_only/site-1": 0.91, "local_only/site-2": 0.89}
    generator = np.random.default_rng(3)
    for arm, top in arms.items():
        for step in range(1, 18):
            score = top - 0.4 * np.exp(-step / 3.5) + generator.normal() * 0.006
            loss = 0.2 + 0.6 * np.exp(-step / 4) + generator.normal() * 0.01
            yield {"arm": arm, "round": step, "train_loss": loss, "validation": {metric: score}, "seconds": 40.0}


def private_history(metric):
    """Of a run that trained without references: no loss left the training patients."""
    for row in history(metric):
        if row["arm"] == "federated":
            yield row | {"train_loss": None, "validation": row["validation"] if row["round"] % 2 else None}


def classified_examples():
    generator = np.random.default_rng(4)
    targets = np.arange(12) % 2
    positive = np.clip(targets * 0.75 + 0.12 + generator.normal(size=12) * 0.2, 0.02, 0.98)
    images = np.stack([smooth(generator) for _ in targets])
    return {"images": images, "targets": targets, "predictions": np.stack([1 - positive, positive], axis=1)}


def segmented_examples():
    generator = np.random.default_rng(5)
    images = np.stack([smooth(generator) for _ in range(3)])
    targets = (images > 0.6).astype(np.uint8) + (images > 0.8)
    predictions = (images > 0.63).astype(np.uint8) + (images > 0.78)
    return {"images": images, "targets": targets, "predictions": predictions}


def write_run(folder, record, steps, examples):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps), encoding="utf-8")
    np.savez_compressed(folder / "examples.npz", **examples)
    return folder


@pytest.fixture
def classification_run(tmp_path):
    """A finished classification run on real data."""
    return write_run(tmp_path / "classification", classification_record(), history("auc"), classified_examples())


@pytest.fixture
def segmentation_run(tmp_path):
    """A finished segmentation run on phantoms, without references."""
    return write_run(tmp_path / "segmentation", segmentation_record(), history("dice"), segmented_examples())


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    """The page of either run, written once for all tests that only read it."""
    folder = tmp_path_factory.mktemp("pages")
    runs = {
        "classification": write_run(folder / "c", classification_record(), history("auc"), classified_examples()),
        "segmentation": write_run(folder / "s", segmentation_record(), history("dice"), segmented_examples()),
    }
    return {task: write_report(run).read_text(encoding="utf-8") for task, run in runs.items()}


@pytest.fixture
def edited(tmp_path):
    """From a function that changes a classification record to the run folder that holds it."""

    def edit(change):
        record = classification_record()
        change(record)
        return write_run(tmp_path / "edited", record, history("auc"), classified_examples())

    return edit


@pytest.fixture
def private_run(tmp_path, claim):
    """From a run's ``privacy`` (a claim that holds by default) to the folder of such a run, without references.

    Its ``secure_aggregation`` may be given too.
    """

    def write(privacy=None, secure=None):
        record = classification_record()
        record.update(privacy=privacy or claim(), references={"central": None, "local_only": None})
        if secure is not None:
            record["secure_aggregation"] = secure
        steps = [row for row in private_history("auc") if row["arm"] == "federated"]
        return write_run(tmp_path / "private", record, steps, classified_examples())

    return write


def sums_of(**changes):
    """A record's ``secure_aggregation`` of five sites, one of which may collude; ``changes`` replace keys."""
    names = [f"site-{number}" for number in range(1, 6)]
    return {
        "groups": [names],
        "thresholds": [4],
        "min_included": [4],
        "colluding": 1,
        "combine": "mean",
        "modulus_bits": 32,
        "resolution": 1.9073486328125e-06,
        "value_range": None,
        "sums_opened": 105,
        "clipped": None,
        "refused_groups": 0,
        "dropped": {"site-2": 3},
        "server_seconds": 1.384,
        "site_seconds": dict.fromkeys(names, 2.7684),
        **changes,
    }


@pytest.fixture
def sums():
    """Makes a record's ``secure_aggregation``; keyword arguments replace keys."""
    return sums_of


@pytest.fixture
def shared_claim(claim):
    """Makes the ``privacy`` of a run whose sites share out the noise; keyword arguments replace keys."""

    def make(**changes):
        return claim(
            **{
                "mode": "distributed",
                "trusted": "nobody",
                "epsilon_server": 2.5247878,
                "holds_against": [
                    "The server, which sees sums over hospitals only, and up to 1 other hospital.",
                    "Not the patient's own hospital, which has the images.",
                ],
                **changes,
            }
        )

    return make
