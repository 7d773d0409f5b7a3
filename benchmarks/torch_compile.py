"""Training with and without torch.compile, one thread: is the compilation worth its warm-up?

python benchmarks/torch_compile.py
"""

import time

import torch
from torch import nn

from medveil.models.cnn import CnnConfig
from medveil.models.registry import build
from medveil.models.unet import UnetConfig

SECONDS = 5.0
CASES = (
    ("small CNN, 28 x 28", CnnConfig(), (1, 28, 28), 2, 32),
    ("U-Net of width 16, 64 x 48", UnetConfig(), (1, 64, 48), 3, 16),
)


def main():
    """Measure and print; the warm-up is short where torch finds code that it compiled before."""
    torch.set_num_threads(1)
    print(f"{'':<30}{'compiled':>9}{'warm-up s':>11}{'images/s':>10}")
    for name, config, shape, classes, batch in CASES:
        spatial = shape[1:] if isinstance(config, UnetConfig) else ()
        images, targets = torch.randn(batch, *shape), torch.randint(0, classes, (batch, *spatial))
        for compiled in (False, True):
            model = build(config, input_shape=shape, num_classes=classes, seed=0)
            warm_up, rate = measure(model, torch.compile(model) if compiled else model, images, targets)
            print(f"{name:<30}{'yes' if compiled else 'no':>9}{warm_up:>11.1f}{rate:>10.0f}")


def measure(model, function, images, targets):
    """Seconds of the first two steps, and images a second afterwards."""
    optimiser = torch.optim.AdamW(model.parameters())

    def step():
        optimiser.zero_grad()
        nn.functional.cross_entropy(function(images), targets).backward()
        optimiser.step()

    begun = time.perf_counter()
    step()
    step()
    warm_up = time.perf_counter() - begun
    begun, steps = time.perf_counter(), 0
    while time.perf_counter() - begun < SECONDS:
        step()
        steps += 1
    return warm_up, len(images) * steps / (time.perf_counter() - begun)


if __name__ == "__main__":
    main()
