"""What a data file leads to, before anything is trained on it."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from medveil.data.catalogue import CATALOGUE, locate
from medveil.data.sources import load, read_data_file
from medveil.errors import MissingDataError


def catalogue_status() -> list[dict[str, Any]]:
    """Every public set that a plan can name: name, title, licence, and whether it is on this machine."""
    return [
        {"name": name, "title": entry.title, "licence": entry.licence, "task": entry.task, "found": _found(name)}
        for name, entry in CATALOGUE.items()
    ]


def _found(name: str) -> bool:
    try:
        locate(name)
    except MissingDataError:
        return False
    return True


def inspect_data(path: Path) -> dict[str, Any]:
    """Read everything that the data file at ``path`` names and count it.

    Raises:
        MedveilError: as the sources raise it.
    """
    config = read_data_file(path)
    dataset = load(config.source, config.preprocess, root=config.root)
    labels: Counter[str] = Counter()
    for subject in dataset.subjects:
        for example in subject.examples:
            present = [example.target] if isinstance(example.target, int) else np.unique(example.target).tolist()
            labels.update(dataset.class_names[label] for label in present)
    return {
        "name": dataset.name,
        "task": dataset.task,
        "kind": dataset.kind,
        "subjects": len(dataset.subjects),
        "examples": dataset.num_examples,
        "shape": list(dataset.example_shape),
        "subject_rule": config.source.subject_rule,
        "labels": dict(labels),
        "rejected": [asdict(rejection) for rejection in dataset.rejected],
    }
