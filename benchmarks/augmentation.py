"""Batched augmentation against MONAI's transforms, image by image, and against the training step itself.

python benchmarks/augmentation.py
"""

import time

import torch
from monai.transforms import Compose, RandAdjustContrast, RandAffine
from torch import nn

from medveil.models.cnn import CnnConfig
from medveil.models.registry import build
from medveil.training.augmentation import Augmentation, augment

BATCH, SECONDS = 32, 3.0


def rate(function):
    """Images a second of a function that handles one batch."""
    function()
    begun, batches = time.perf_counter(), 0
    while time.perf_counter() - begun < SECONDS:
        function()
        batches += 1
    return BATCH * batches / (time.perf_counter() - begun)


def main():
    """Measure and print."""
    torch.set_num_threads(1)
    images, targets = torch.rand(BATCH, 1, 28, 28), torch.randint(0, 2, (BATCH,))
    ours = Augmentation(rotate_degrees=10, shift=0.08, scale=0.1, gain=0.15)
    generator = torch.Generator().manual_seed(0)
    theirs = Compose(
        [
            RandAffine(
                prob=1.0,
                rotate_range=0.17,
                translate_range=2.2,
                scale_range=0.1,
                padding_mode="border",
                mode="bilinear",
            ),
            RandAdjustContrast(prob=1.0, gamma=(0.85, 1.15)),
        ]
    )
    model = build(CnnConfig(), input_shape=(1, 28, 28), num_classes=2, seed=0)
    optimiser = torch.optim.AdamW(model.parameters())

    def step():
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimiser.step()

    rows = {
        "training step of the small CNN": rate(step),
        "medveil.training.augment (batched)": rate(lambda: augment(images, None, ours, generator)),
        "MONAI RandAffine + RandAdjustContrast": rate(lambda: [theirs(image) for image in images]),
    }
    print(f"{'28x28 grey, one thread':<40}{'images/s':>10}{'us/image':>10}")
    for name, value in rows.items():
        print(f"{name:<40}{value:>10.0f}{1e6 / value:>10.0f}")


if __name__ == "__main__":
    main()
