"""One plan of an epsilon grid: the plan as given, with another epsilon and seed, or without its protection."""

import numpy as np
from numpy.typing import NDArray

from medveil.configuration import parse_config
from medveil.data.partition import NaturalPartition
from medveil.dp.settings import Mechanism, Noise, Sampling, SiteDpFedAvg
from medveil.errors import ConfigError
from medveil.study.plan import Plan, Privacy, References
from medveil.study.prepare import prepare


def mechanism_of(plan: Plan) -> Mechanism:
    """The mechanism whose noise the grid varies.

    Raises:
        ConfigError: the plan promises nothing, so that there is no epsilon to vary.
    """
    if plan.privacy.dp is None:
        raise ConfigError(
            "A plan of the grid promises no differential privacy",
            got=f'no [privacy.dp] in "{plan.name}"',
            expected="a plan with a claim, whose epsilon the grid replaces",
            remedy='add [privacy.dp]; the epsilon "none" trains the same plan without it',
        )
    return plan.privacy.dp


def at_epsilon(plan: Plan, epsilon: float, seed: int) -> Plan:
    """The plan with its noise calibrated to ``epsilon``; a stated noise multiplier is dropped.

    Args:
        plan: with a mechanism.
        epsilon: > 0, of the whole training.
        seed: root of the reproducible randomness (first weights, batches, random splits and partitions).

    Raises:
        ConfigError: the plan has no mechanism, or epsilon is out of range.
    """
    mechanism = mechanism_of(plan)
    values = {"epsilon": epsilon, "generator": mechanism.noise.generator}
    noise = parse_config(Noise, values, where="the grid's epsilon")
    privacy = plan.privacy.model_copy(update={"dp": mechanism.model_copy(update={"noise": noise})})
    return plan.model_copy(update={"privacy": privacy, "seed": seed})


def without_privacy(plan: Plan, seed: int, *, batch_size: int) -> Plan:
    """The plan without its ``[privacy]`` table, made so that its learning rates keep their meaning.

    What changes besides: the references are off, as they are in a private run. Where patients or images are the
    unit, a site's batches have ``batch_size`` images, and the norm of a batch's gradient is limited to the clip norm
    (or to ``training.max_grad_norm`` where that is smaller): a private step is no longer than that either, but for
    its noise. Where sites are the unit, their batches stay as they are and their changes are not clipped. All else,
    weighting, number of steps, schedule and augmentation included, stays.

    Args:
        plan: with a mechanism.
        seed: as for :func:`at_epsilon`.
        batch_size: images of a site's batch, from :func:`private_batch`.

    Guarantees:
        None: the run is not private.
    """
    mechanism, training = mechanism_of(plan), plan.training
    if not isinstance(mechanism, SiteDpFedAvg):
        bounds = (mechanism.clipping.l2_clip_norm, training.max_grad_norm)
        limit = min(bound for bound in bounds if bound is not None)
        training = training.model_copy(update={"batch_size": batch_size, "max_grad_norm": limit})
    changes = {"privacy": Privacy(), "references": References(central=False, local_only=False)}
    return plan.model_copy(update={**changes, "training": training, "seed": seed})


def private_batch(plan: Plan) -> int:
    """Images that a private step is expected to draw, shared equally among the sites; at least 1.

    The sampling rate times the public nominal number of units, over the number of sites, times the mean number of
    images that a drawn unit gives (at most ``max_images``). The data are read, with the plan's own seed, only where
    the plan does not say how many sites there are or where a patient may have several images.

    Raises:
        ConfigError: the plan has no mechanism.
        DataError: the data cannot be read.
    """
    mechanism = mechanism_of(plan)
    if isinstance(mechanism, SiteDpFedAvg):
        return plan.training.batch_size
    sites, images = _sites(plan), _images_a_unit(plan)
    if sites is None or images is None:
        prepared = prepare(plan)
        sites = sites or len(prepared.sites)
        images = images or mean_images(prepared.pool().train.subject, mechanism.sampling.max_images)
    return max(1, round(mechanism.sampling.rate * _units(mechanism.sampling) * images / sites))


def mean_images(subject: NDArray[np.int64], limit: int | None) -> float:
    """Mean number of images of a subject, each subject counted with at most ``limit``.

    Args:
        subject: owner of every image, shape (n,).
        limit: or None.

    >>> mean_images(np.array([0, 0, 0, 1]), 2)
    1.5
    """
    counts = np.unique(subject, return_counts=True)[1]
    return float(np.minimum(counts, limit or counts.max()).mean())


def _units(sampling: Sampling) -> int:
    stated = sampling.nominal_units
    return stated if isinstance(stated, int) else sum(stated.values())


def _sites(plan: Plan) -> int | None:
    return None if isinstance(plan.data.partition, NaturalPartition) else plan.data.partition.count


def _images_a_unit(plan: Plan) -> float | None:
    """1 where the plan says so, None where only the data know."""
    return 1.0 if plan.privacy.unit == "image" or not plan.data.source.names_patients else None
