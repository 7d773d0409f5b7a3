"""What a plan's secure sum would be and cost, said before any data is read."""

import math
from typing import Any

from medveil.dp.plan import PrivacyPlan
from medveil.dp.settings import DistributedDpSgd
from medveil.federation.clear_sum import SCORES
from medveil.federation.coordinator import validation_due
from medveil.federation.secure.settings import SecureAggregation
from medveil.secagg.records import Entry, Receipt, Sealed, Share
from medveil.study.plan import Plan
from medveil.study.record import known_sites
from medveil.study.secure import packing_of

_BITS_A_BYTE = 8
_LARGEST_MODULUS = 64
# Fixed fields and headers of the messages that one site sends for one sum, beside its records.
_HEADER_BYTES = 590
# A score is a sum and a weight, each of 64 bits.
_SCORE_BYTES = 2 * 8 * len(SCORES)


def describe_secure(plan: Plan, bound: PrivacyPlan | None, sizes: tuple[int, int] | None) -> dict[str, Any] | None:
    """The secure sums that the plan asks for; None where it asks for none.

    Args:
        plan: as loaded.
        bound: what it promises.
        sizes: numbers of parameters and of running statistics, or None where only the data know them.

    Returns:
        As the record's ``secure_aggregation`` begins, with numbers of sites in place of names. What only the data or
        the model can tell is None.

    Raises:
        GuaranteeError: a threshold that cannot protect.
        ConfigError: sums that do not fit the modulus.
    """
    settings = plan.privacy.secure_aggregation
    if settings is None:
        return None
    sites = known_sites(plan)
    sizes_of = [] if sites is None else _group_sizes(settings, sites)
    packing = None
    if sites is not None and sizes is not None:
        most = max(sizes_of)
        packing = packing_of(plan, bound, sizes, members=most, most=most, sites=sites).describe()
    return {
        "groups": sizes_of or None,
        "thresholds": [settings.threshold_of(size) for size in sizes_of] or None,
        "min_included": [size - settings.dropouts_of(size) for size in sizes_of] or None,
        "colluding": settings.colluding,
        "combine": settings.combine,
        "blocks": settings.blocks,
        **(packing or dict.fromkeys(("modulus_bits", "resolution", "value_range"))),
    }


def bytes_per_site(plan: Plan, secure: dict[str, Any], sizes: tuple[int, int]) -> int:
    """About what one site sends over all rounds: masked vectors, and the messages of the protocol.

    Where the modulus is not known yet, the larger one is counted; where the number of sites is not, the messages
    are counted as those of two.

    Args:
        plan: as loaded.
        secure: of :func:`describe_secure`.
        sizes: numbers of parameters and of running statistics.
    """
    sites: int = max(secure["groups"] or [2])
    rounds = plan.federation.rounds
    validations = sum(validation_due(plan.federation, number) for number in range(1, rounds + 1))
    noisy = isinstance(plan.privacy.dp, DistributedDpSgd)
    blocks: int = secure["blocks"]
    in_a_round = math.ceil(sizes[0] / blocks)
    coordinates = in_a_round if noisy else in_a_round + sizes[1]
    bits: int = secure["modulus_bits"] or _LARGEST_MODULUS
    vector = coordinates * bits // _BITS_A_BYTE
    records = Entry.size + Receipt.size + (sites - 1) * Sealed.size + sites * Share.size
    total: int = rounds * vector + validations * _SCORE_BYTES + (rounds + validations) * (records + _HEADER_BYTES)
    return total


def settings_text(secure: dict[str, Any]) -> str:
    """The secure sum's settings in a line for the terminal."""
    if secure["groups"] is None:
        return f"sites as the data name them, {secure['colluding']} may collude"
    sizes, thresholds = secure["groups"], secure["thresholds"]
    absent = [size - least for size, least in zip(sizes, secure["min_included"], strict=True)]
    groups = [
        f"{threshold} of {size} sites open a sum, {missing} may drop out"
        for size, threshold, missing in zip(sizes, thresholds, absent, strict=True)
    ]
    several = len(groups) > 1
    parts = [
        f"{len(groups)} groups, combined by {secure['combine']}: {_alike(groups)}" if several else groups[0],
        f"{secure['colluding']} may collude with the server",
    ]
    if secure["modulus_bits"] is not None:
        parts.append(f"modulus 2^{secure['modulus_bits']}, resolution {secure['resolution']:.2g}")
    return ", ".join(parts)


def _alike(texts: list[str]) -> str:
    return "; ".join(dict.fromkeys(texts))


def _group_sizes(settings: SecureAggregation, sites: int) -> list[int]:
    """As :meth:`SecureAggregation.deal` deals them."""
    settings.smallest_group(sites)
    return [len(range(group, sites, settings.groups)) for group in range(settings.groups)]
