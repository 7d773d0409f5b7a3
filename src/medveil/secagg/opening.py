"""The server opens a sum: secrets from shares, each checked, and the masks that are left taken away."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, combinations, islice

from medveil.errors import AuthenticityError, ConfigError, MessageError, TooFewSitesError
from medveil.secagg.collecting import Collection
from medveil.secagg.keys import KeyPair
from medveil.secagg.masking import mask_key, uncover
from medveil.secagg.parameters import Parameters
from medveil.secagg.records import Kind, commitment
from medveil.secagg.ring import RingVector
from medveil.secagg.shamir import combine

_MOST_TRIES = 2000

Check = Callable[[int, bytes], bool]


@dataclass(frozen=True, slots=True)
class Opened:
    """A sum that was opened.

    Args:
        step: its number.
        total: sum of the included sites' vectors modulo 2**bits, shape (length,).
        included: names of the sites in it.
        dropped: names of the sites that began the step and are not in it.
        bits: 32 or 64.
    """

    step: int
    total: RingVector
    included: tuple[str, ...]
    dropped: tuple[str, ...]
    bits: int


def open_sum(collection: Collection, parameters: Parameters, session: bytes) -> Opened:
    """The sum of the vectors, from that of the masked vectors in ``collection``, which becomes it.

    Raises:
        TooFewSitesError: fewer shares of a secret that is needed than the threshold.
        AuthenticityError: no choice of shares gives the secret that a site committed itself to.
    """
    entries, total = collection.entries, collection.total
    included, dropped = [receipt.index for receipt in collection.included], collection.dropped
    context = collection.included[0].context
    seeds = recover(
        {index: collection.shares[Kind.SEED].get(index, {}) for index in included},
        parameters.threshold,
        lambda index, secret: commitment(secret) == entries[index].commitment,
    )
    secrets = recover(
        {index: collection.shares[Kind.MASK_KEY].get(index, {}) for index in dropped},
        parameters.threshold,
        # X25519 ignores five bits of a secret: one that differs in them alone passes, and gives the same masks.
        lambda index, secret: KeyPair(secret).public == entries[index].key,
    )
    keys = {}
    for other, secret in secrets.items():
        pair = KeyPair(secret)
        for own in included:
            shared = pair.agree(entries[own].key)
            keys[own, other] = mask_key(shared, session, collection.step, collection.view, context, own, other)
    uncover(total, seeds, keys)
    name = parameters.name
    return Opened(collection.step, total, tuple(map(name, included)), tuple(map(name, dropped)), 8 * total.itemsize)


def recover(shares: Mapping[int, Mapping[int, bytes]], threshold: int, check: Check) -> dict[int, bytes]:
    """Secrets of several sites from their shares, every one checked.

    Where some shares are wrong, other choices of ``threshold`` holders are tried, leaving out one, then two, and so on;
    at most 2000 for each secret. The holders that served for one secret are tried first for the next.

    Args:
        shares: for each site, the shares of its secret by holder.
        threshold: how many give a secret.
        check: whether a secret is the site's.

    Raises:
        TooFewSitesError: fewer than ``threshold`` shares of one of them.
        AuthenticityError: none of the choices passes the check.
    """
    found: dict[int, bytes] = {}
    trusted: tuple[int, ...] = ()
    for index, held in shares.items():
        if len(held) < threshold:
            raise TooFewSitesError(
                "Too few shares to open the sum",
                got=f"{len(held)} shares of site {index}",
                expected=f"at least {threshold}",
                remedy="nothing was opened; start a new session",
            )
        first = (trusted,) if trusted and held.keys() >= set(trusted) else ()
        for holders in islice(chain(first, _choices(sorted(held), threshold)), _MOST_TRIES):
            secret = _combined({holder: held[holder] for holder in holders}, threshold)
            if secret is not None and check(index, secret):
                found[index], trusted = secret, holders
                break
        else:
            raise AuthenticityError(
                "The shares do not give the secret that a site committed itself to",
                got=f"{len(held)} shares of site {index}, all or too many of them wrong",
                expected=f"{threshold} shares as that site made them",
                remedy="nothing was opened; that site, or several of those that hold its shares, are at fault",
            )
    return found


def _choices(holders: list[int], threshold: int) -> Iterator[tuple[int, ...]]:
    """Every choice of ``threshold`` holders once, first those that leave out few: liars are rare."""
    seen = set()
    for size in range(len(holders) - threshold + 1):
        for out in combinations(holders, size):
            chosen = tuple(holder for holder in holders if holder not in out)[:threshold]
            if chosen not in seen:
                seen.add(chosen)
                yield chosen


def _combined(shares: Mapping[int, bytes], threshold: int) -> bytes | None:
    try:
        return combine(shares, threshold)
    except (MessageError, ConfigError):
        return None
