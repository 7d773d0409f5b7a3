"""Whose images are attacked, and how well they could be guessed before anything was seen."""

import numpy as np
from numpy.typing import NDArray

from medveil.attacks.scene import Scene
from medveil.rng import Seeds


def eligible(scene: Scene, count: int) -> NDArray[np.int64]:
    """Rows of images that may be attacked: all; for segmentation those with a foreground, where ``count`` have one."""
    rows = np.arange(len(scene.images))
    if scene.task == "segmentation":
        full: NDArray[np.int64] = rows[(scene.targets > 0).flatten(1).any(1).numpy()]
        if len(np.unique(scene.subject[full])) >= count:
            return full
    return rows


def choose_victims(scene: Scene, count: int, seeds: Seeds) -> NDArray[np.int64]:
    """One image a patient: patients are drawn alike, then one of each patient's eligible images."""
    draws = seeds.numpy()
    rows = eligible(scene, count)
    patients = draws.permutation(np.unique(scene.subject[rows]))[:count]
    return np.array([draws.choice(rows[scene.subject[rows] == each]) for each in patients], dtype=np.int64)


def chance(scene: Scene, victims: NDArray[np.int64]) -> float:
    """Largest chance to guess a victim's image unaided, among it and the images of patients who are no victims.

    Patients are drawn alike, so the likeliest image is that of a patient who has the fewest.
    """
    rows = eligible(scene, len(victims))
    attacked = scene.subject[victims]
    others = np.unique(scene.subject[rows][~np.isin(scene.subject[rows], attacked)], return_counts=True)[1]
    own = [int((scene.subject[rows] == each).sum()) for each in attacked]
    fewest: int = min([*own, *others.tolist()])
    return 1 / ((len(others) + 1) * fewest)
