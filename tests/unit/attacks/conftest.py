"""A small scene for attacks: blurred random images, one a patient, that no data set is needed for."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from medveil.attacks.scene import Protection, Scene
from medveil.dp.clipping import FlatClipping
from medveil.models.registry import build
from medveil.rng import Seeds
from medveil.training.arrays import InputScale
from medveil.training.objectives import CrossEntropy, DiceCrossEntropy, per_example_loss
from medveil.training.settings import Training

SIDE = 16


def blurred_images(count: int, side: int, seeds: Seeds) -> torch.Tensor:
    """Smooth random images in 0..1, shape (count, 1, side, side)."""
    noise = torch.randn(count, 1, side // 4, side // 4, generator=seeds.torch())
    smooth = functional.interpolate(noise, size=(side, side), mode="bicubic")
    return (0.5 + 0.2 * smooth).clamp(0, 1)


@pytest.fixture
def make_scene():
    """A function (config, **changes) -> Scene of 60 patients with a random task; "unet" kinds segment."""

    def make(config, *, task="classification", patients=60, protection=None, seed=0, **changes):
        seeds = Seeds(seed)
        images = blurred_images(patients, SIDE, seeds.child("images"))
        public = blurred_images(40, SIDE, seeds.child("public"))
        loss = DiceCrossEntropy() if task == "segmentation" else CrossEntropy()
        model = build(config, input_shape=(1, SIDE, SIDE), num_classes=2, seed=seeds.child("weights"), task=task)

        def targets(of):
            return (of[:, 0] > 0.5).long() if task == "segmentation" else (of.mean((1, 2, 3)) > 0.5).long()

        content = {
            "model": model,
            "trained": model,
            "loss": lambda logits, wanted: per_example_loss(logits, wanted, loss),
            "scale": InputScale(),
            "task": task,
            "num_classes": 2,
            "images": images,
            "targets": targets(images),
            "subject": np.arange(patients),
            "public": public,
            "public_targets": targets(public),
            "public_subject": np.arange(40),
            "training": Training(loss=loss),
            "sites": 3,
            "protection": protection,
        }
        return Scene(**{**content, **changes})

    return make


@pytest.fixture
def epsilon_8():
    """About what a private plan says: noise 1.2, clip norm 1."""
    return Protection(
        clipping=FlatClipping(l2_clip_norm=1.0),
        noise_multiplier=1.2,
        sampling_rate=0.05,
        steps=100,
        delta=1e-5,
        epsilon=8.0,
        sites=3,
    )
