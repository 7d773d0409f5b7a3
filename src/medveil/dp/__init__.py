"""Differentially private training: sampling, per-unit gradients, clipping, noise, and the plan that binds them."""

from medveil.dp.checks import check
from medveil.dp.gradients import per_unit_gradients

__all__ = ["check", "per_unit_gradients"]
