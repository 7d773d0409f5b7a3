"""What is spent: events as data, accountants, calibration, meaning, and the ledger. No torch.

The figure is :func:`epsilon_of`; for DP-SGD there is the short :func:`epsilon`. Heavy libraries load on first use.
"""

from medveil.accounting.accountants import Spent, delta_of, dp_sgd, epsilon, epsilon_of, insider_epsilon
from medveil.accounting.calibrate import calibrate_event, calibrate_noise, calibrate_steps
from medveil.accounting.events import (
    Composed,
    Event,
    Gaussian,
    Laplace,
    PoissonGaussian,
    Relation,
    RepeatAndSelect,
    Repeated,
    Stated,
    compose,
    parse_event,
)

__all__ = [
    "Composed",
    "Event",
    "Gaussian",
    "Laplace",
    "PoissonGaussian",
    "Relation",
    "RepeatAndSelect",
    "Repeated",
    "Spent",
    "Stated",
    "calibrate_event",
    "calibrate_noise",
    "calibrate_steps",
    "compose",
    "delta_of",
    "dp_sgd",
    "epsilon",
    "epsilon_of",
    "insider_epsilon",
    "parse_event",
]
