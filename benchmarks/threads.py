"""Two cores for two sites: torch on two threads, or two Python threads with one torch thread each.

python benchmarks/threads.py
"""

import time
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

STEPS = 60


def work(_number):
    """Train a small CNN for some steps."""
    layers = [nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2)]
    model = nn.Sequential(*layers)
    optimiser = torch.optim.Adam(model.parameters())
    images, targets = torch.randn(128, 1, 28, 28), torch.randint(0, 2, (128,))
    for _ in range(STEPS):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimiser.step()


def timed(function):
    """Seconds of one call."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def main():
    """Measure and print two trainings of 60 steps."""
    work(0)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        print(f"one after the other, torch on {threads} thread(s): {timed(lambda: [work(0), work(1)]):.2f} s")
    with ThreadPoolExecutor(2, initializer=lambda: torch.set_num_threads(1)) as pool:
        print(f"side by side, one torch thread each: {timed(lambda: list(pool.map(work, range(2)))):.2f} s")


if __name__ == "__main__":
    main()
