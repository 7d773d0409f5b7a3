"""Membership scores of models and patients, and how well they tell members from others.

Every array here has one row a model and one column a patient. Each model is the target in turn and the others are its
shadows, so K models and P patients give K * P scores, of which about half are members'.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medveil.attacks.attack import Figure
from medveil.attacks.measures import rate
from medveil.rng import Seeds

Scores = NDArray[np.float64]
Members = NDArray[np.bool_]
Variant = Literal["online", "offline"]

_CONFIDENCE = 0.95
_RESAMPLES = 1000
_BLOCK = 100


def likelihood_ratios(signal: Scores, members: Members, variant: Variant = "online") -> Scores:
    """LiRA: how much likelier a target's answer is if the patient was a member; each model is the target in turn.

    A patient's answers are taken as normal with a mean of their own, one for shadows that had the patient and one for
    those that had not; the two variances are shared by all patients, which with fewer than 64 shadows is better than
    one a patient.

    Args:
        signal: shape (models, patients); larger where a model is surer of the truth, about normal.
        members: shape (models, patients): whose images a model was trained on.
        variant: "online" compares both hypotheses; "offline" has no shadows with the patient and only asks how
            unlikely the answer is without.

    Returns:
        Shape (models, patients); online the logarithm of the ratio, offline standard deviations above the mean. 0
        where no shadow tells anything.

    Reference:
        Carlini et al. 2022, Algorithm 1 and section VI-D, https://arxiv.org/abs/2112.03570
    """
    centred = signal - signal.mean(0)
    out_mean, out_variance = _of_the_others(centred, ~members)
    if variant == "offline":
        found = (centred - out_mean) / np.sqrt(out_variance)
    else:
        in_mean, in_variance = _of_the_others(centred, members)
        found = _log_density(centred, in_mean, in_variance) - _log_density(centred, out_mean, out_variance)
    return np.where(np.isfinite(found), found, 0.0)


def _of_the_others(values: Scores, chosen: Members) -> tuple[Scores, Scores]:
    """Mean of a patient's chosen values (models, patients) and the variance of all (models, 1), without the target.

    The mean is not a number where no value is left.
    """
    picked = np.where(chosen, values, 0.0)
    count = chosen.sum(0) - chosen
    total = picked.sum(0) - picked
    squares = (picked**2).sum(0) - picked**2
    mean = np.divide(total, count, out=np.full(values.shape, np.nan), where=count > 0)
    within = np.where(count > 0, squares - np.nan_to_num(mean) * total, 0.0).sum(1, keepdims=True)
    freedom = np.maximum(count - 1, 0).sum(1, keepdims=True)
    return mean, np.maximum(within, 1e-12) / np.maximum(freedom, 1)


def _log_density(values: Scores, mean: Scores, variance: Scores) -> Scores:
    density: Scores = -((values - mean) ** 2) / (2 * variance) - np.log(variance) / 2
    return density


def memorisation(confidence: Scores, members: Members) -> Scores:
    """Of every patient, how much surer models are that had the patient: mean with minus mean without.

    Args:
        confidence: shape (models, patients), probability of the truth.
        members: likewise.

    Returns:
        Shape (patients,), in [-1, 1]; not a number where no model had the patient, or all had.

    Reference:
        Feldman & Zhang 2020, equation (1), https://arxiv.org/abs/2008.03703
    """
    present, absent = members.sum(0), (~members).sum(0)
    known = (present > 0) & (absent > 0)
    with_them = (confidence * members).sum(0) / np.maximum(present, 1)
    without = (confidence * ~members).sum(0) / np.maximum(absent, 1)
    return np.where(known, with_them - without, np.nan)


def area(scores: Scores, members: Members, seeds: Seeds) -> Figure:
    """Area under the ROC curve, ties counting half, with a bootstrap interval.

    Patients are resampled, each with all of its models: scores of one patient are not independent. Models are not.

    Args:
        scores: shape (models, patients).
        members: likewise.
        seeds: of the resampling.
    """
    wins = _wins(scores, members)
    positives, negatives = members.sum(0).astype(float), (~members).sum(0).astype(float)
    weights = _resampled(scores.shape[1], seeds)
    resampled = np.einsum("ri,ij,rj->r", weights, wins, weights, optimize=True)
    resampled /= np.maximum((weights @ positives) * (weights @ negatives), 1)
    low, high = np.quantile(resampled, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return Figure(float(wins.sum() / (positives.sum() * negatives.sum())), float(low), float(high), _CONFIDENCE)


def _wins(scores: Scores, members: Members) -> Scores:
    """How often a score of patient i as a member exceeds one of patient j as none; shape (patients, patients)."""
    columns = []
    for patient in range(scores.shape[1]):
        others = np.sort(scores[~members[:, patient], patient])
        above = np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")
        columns.append((above / 2 * members).sum(0))
    return np.stack(columns, axis=1)


def hit_rate(scores: Scores, members: Members, false_positive_rate: float, seeds: Seeds) -> Figure:
    """True-positive rate at a false-positive rate.

    The interval covers two: the bootstrap over patients, each time with a threshold of its own, and Clopper-Pearson
    over the pairs of model and patient, which says something where no pair is hit.

    Args:
        scores: shape (models, patients).
        members: likewise.
        false_positive_rate: of a threshold that the others set; ties with it count as misses.
        seeds: of the resampling.
    """
    order, ends, patient, positive = _falling(scores, members)
    weights = _resampled(scores.shape[1], seeds)
    values = [
        _hit(block[:, patient[order]], positive[order], ends, false_positive_rate)
        for block in np.split(weights, range(_BLOCK, len(weights), _BLOCK))
    ]
    value = float(_hit(np.ones((1, scores.size)), positive[order], ends, false_positive_rate)[0])
    low, high = np.quantile(np.concatenate(values), [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    trials = int(members.sum())
    counted = rate(round(value * trials), trials, _CONFIDENCE)
    return Figure(value, min(float(low), counted.low or 0.0), max(float(high), counted.high or 0.0), _CONFIDENCE)


def roc(scores: Scores, members: Members, false_positive_rates: Scores) -> Scores:
    """True-positive rate at each false-positive rate; shape (rates,)."""
    order, ends, _, positive = _falling(scores, members)
    ones = np.ones((1, scores.size))
    return np.array([_hit(ones, positive[order], ends, each)[0] for each in false_positive_rates])


def _falling(scores: Scores, members: Members) -> tuple[NDArray[np.int64], Members, NDArray[np.int64], Members]:
    """Pairs by falling score, where groups of ties end, and (in their first order) patient and membership."""
    flat = scores.ravel()
    order = np.argsort(-flat, kind="stable")
    ends = np.append(np.diff(flat[order]) != 0, True)
    patient = np.tile(np.arange(scores.shape[1]), len(scores))
    return order, ends, patient, members.ravel()


def _hit(weights: Scores, positive: Members, ends: Members, false_positive_rate: float) -> Scores:
    """Share of the positives' weight above the lowest threshold that lets no more of the others through."""
    wrong = np.cumsum(weights * ~positive, axis=1)
    right = np.cumsum(weights * positive, axis=1)
    allowed = (wrong <= false_positive_rate * wrong[:, -1:] + 1e-9) & ends
    share: Scores = np.where(allowed, right, 0.0).max(1) / np.maximum(right[:, -1], 1e-12)
    return share


def _resampled(patients: int, seeds: Seeds) -> Scores:
    """How often each patient is drawn; shape (resamples, patients)."""
    return seeds.numpy().multinomial(patients, np.full(patients, 1 / patients), _RESAMPLES).astype(float)
