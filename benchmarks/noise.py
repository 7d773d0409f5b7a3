"""Time of secure randomness, grid noise and clipping, beside NumPy, torch and Opacus in the same run.

OMP_NUM_THREADS=1 python benchmarks/noise.py
"""

import numpy as np
import torch
from opacus.optimizers.optimizer import _generate_noise

from medveil.dp.clipping import FlatClipping, clip_and_sum
from medveil.dp.noise import NoiseMechanism, rounded_gaussian
from medveil.dp.sampling import PoissonSampler
from medveil.rng import SecureRandom
from side_by_side import table

DIMENSION = 270_000
UNITS = 64
# About the tensors of a ResNet-20: most small, some of 37 thousand values.
SHAPES = [(16, 16, 3, 3)] * 7 + [(32, 32, 3, 3)] * 6 + [(64, 64, 3, 3)] * 5 + [(64,)] * 12


def clipped_in_float32(gradients, total):
    """Norms, factors and sums in float32, as per-sample gradient libraries do it; no bound on the rounding."""
    norms = torch.stack([row.flatten(1).norm(dim=1) for row in gradients]).norm(dim=0)
    factors = (1.0 / (norms + 1e-6)).clamp(max=1.0)
    total += torch.cat([torch.einsum("i,i...", factors, row).flatten() for row in gradients])


def main():
    """Measure and print."""
    torch.set_num_threads(1)
    random, mechanism = SecureRandom(), NoiseMechanism(1.0, 1.0, DIMENSION)
    generator, total = np.random.default_rng(), np.zeros(DIMENSION)
    reference = torch.zeros(DIMENSION)
    table(
        f"Noise for {DIMENSION} parameters",
        "NumPy standard_normal (PCG64, not secure)",
        {
            "secure words alone": lambda: random.words(DIMENSION),
            "rounded_gaussian": lambda: rounded_gaussian(mechanism.std_grid, DIMENSION, random),
            "release: rounding, noise, decoding": lambda: mechanism.release(total, random),
            "NumPy standard_normal (PCG64, not secure)": lambda: generator.standard_normal(DIMENSION),
            "Opacus noise": lambda: _generate_noise(1.0, reference),
            "Opacus noise, secure_mode": lambda: _generate_noise(1.0, reference, secure_mode=True),
        },
    )
    gradients = [torch.randn(UNITS, *shape) for shape in SHAPES]
    size = sum(row[0].numel() for row in gradients)
    double, single = torch.zeros(size, dtype=torch.float64), torch.zeros(size)
    table(
        f"Clipping {UNITS} units of {size} values",
        "all in float32, unbounded rounding",
        {
            "clip_and_sum": lambda: clip_and_sum(FlatClipping(l2_clip_norm=1.0), gradients, double),
            "all in float32, unbounded rounding": lambda: clipped_in_float32(gradients, single),
        },
    )
    sampler = PoissonSampler(100_000, 0.01, random)
    table(
        "Poisson sampling of 100000 units",
        "NumPy random() < rate (not secure)",
        {
            "PoissonSampler.draw": sampler.draw,
            "NumPy random() < rate (not secure)": lambda: np.flatnonzero(generator.random(100_000) < 0.01),
        },
    )


if __name__ == "__main__":
    main()
