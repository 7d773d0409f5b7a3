"""Exhaustively, over the integers modulo 4: what server and colluding sites see depends on the honest sum alone."""

from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest

from medveil.secagg.masking import left_over, partners, sign

M = 4


def views(inputs, honest, colluding, dropped, *, late=(), give_both=False, self_masks=True):
    """Multiset of what the adversary sees, over all values of all masks between honest sites and all self masks.

    Inputs are one number a site. Masks with colluding sites are known to the adversary, so that they are zero here.
    Seen: the honest sites' masked numbers (of dropped sites only if ``late``), the self masks of the included, the
    pairwise masks of the dropped. ``give_both`` breaks the rule: self masks of the dropped are seen too.
    """
    everyone = sorted((*honest, *colluding))
    pairs = list(combinations(honest, 2))
    masks = np.indices((M,) * (len(pairs) + len(honest))).reshape(len(pairs) + len(honest), -1)
    pair = dict(zip(pairs, masks[: len(pairs)], strict=True))
    own = dict(zip(honest, masks[len(pairs) :] * self_masks, strict=True))
    seen = []
    for site in honest:
        masked = inputs[site] + own[site]
        for other, pair_sign in partners(site, everyone):
            if other in honest:
                masked = masked + pair_sign * pair[min(site, other), max(site, other)]
        if site not in dropped or site in late:
            seen.append(masked % M)
        if site not in dropped or give_both:
            seen.append(own[site])
    seen += [value for (one, other), value in pair.items() if one in dropped or other in dropped]
    return Counter(map(bytes, np.array(seen, np.uint8).T))


CASES = [
    # honest, colluding, dropped: at least two honest sites stay in the sum
    ((1, 2), (), ()),
    ((1, 2, 3), (), ()),
    ((1, 3), (2,), ()),
    ((2, 3, 5), (1, 4), ()),
    ((1, 2, 3), (), (2,)),
    ((1, 3, 4), (2,), (1,)),
    ((1, 2, 4), (3, 5), (4,)),
]


def assignments(honest, dropped):
    """All inputs, in classes with the same sum over the included."""
    classes = {}
    for numbers in product(range(M), repeat=len(honest)):
        inputs = dict(zip(honest, numbers, strict=True))
        total = sum(value for site, value in inputs.items() if site not in dropped) % M
        classes.setdefault(total, []).append(inputs)
    return classes


@pytest.mark.parametrize(("honest", "colluding", "dropped"), CASES)
@pytest.mark.parametrize("late", [False, True])
def test_equal_sums_look_equal(honest, colluding, dropped, late):
    """A dropped site's vector that comes late included: its input does not show at all."""
    by_sum = {}
    for total, group in assignments(honest, dropped).items():
        seen = [views(inputs, honest, colluding, dropped, late=dropped if late else ()) for inputs in group]
        assert all(one == seen[0] for one in seen)
        by_sum[total] = seen[0]
    # The sum itself is seen: that is the point of it, and it shows that the test compares something.
    assert all(by_sum[one] != by_sum[other] for one, other in combinations(by_sum, 2))


@pytest.mark.parametrize(("honest", "colluding", "dropped"), [case for case in CASES if case[2]])
def test_with_both_kinds_opened_a_late_vector_shows(honest, colluding, dropped):
    group = assignments(honest, dropped)[0]
    seen = [views(inputs, honest, colluding, dropped, late=dropped, give_both=True) for inputs in group]
    assert any(one != seen[0] for one in seen)


@pytest.mark.parametrize(("honest", "colluding", "dropped"), [case for case in CASES if case[2]])
def test_without_self_masks_a_late_vector_shows(honest, colluding, dropped):
    group = assignments(honest, dropped)[0]
    seen = [views(inputs, honest, colluding, dropped, late=dropped, self_masks=False) for inputs in group]
    assert any(one != seen[0] for one in seen)


def test_one_honest_site_has_no_company():
    """Why parameters demand two: with one, the sum less the colluders' inputs is its input."""
    seen = {value: views({1: value}, (1,), (2, 3), ()) for value in range(M)}
    assert len({frozenset(one.items()) for one in seen.values()}) == M


@pytest.mark.parametrize("n", range(2, 8))
def test_signs_cancel_and_the_left_over_is_what_partners_put_in(n):
    everyone = range(1, n + 1)
    for k in range(n):
        dropped = set(range(1, k + 1))
        included = [site for site in everyone if site not in dropped]
        balance = Counter()
        for site in included:
            for other, pair_sign in partners(site, everyone):
                balance[min(site, other), max(site, other)] += pair_sign
        for own, other, pair_sign in left_over(included, dropped):
            balance[min(own, other), max(own, other)] -= pair_sign
        assert not any(balance.values())
    assert all(sign(a, b) == -sign(b, a) for a, b in combinations(everyone, 2))
