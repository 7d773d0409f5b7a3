"""The secrets of one step, and their shares sealed for the other sites."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace

from medveil.errors import AuthenticityError
from medveil.rng import SecureRandom
from medveil.secagg.identity import IdentityKey
from medveil.secagg.keys import KEY_BYTES, KeyPair, derive, seal, unseal
from medveil.secagg.messages import Prepare
from medveil.secagg.records import Entry, Kind, Sealed, commitment
from medveil.secagg.shamir import SHARE_BYTES, split_many


@dataclass(frozen=True, slots=True, repr=False)
class Preparation:
    """A site's own secrets of one step: the seed of its self mask, its mask key, and its own share of the seed."""

    step: int
    entry: Entry
    masks: KeyPair
    seed: bytes
    own_share: bytes


def prepare(
    step: int,
    index: int,
    session: bytes,
    identity: IdentityKey,
    shared: Mapping[int, bytes],
    threshold: int,
    random: SecureRandom,
) -> tuple[Preparation, Prepare]:
    """Draw the secrets of a step and seal a share of each for every other site.

    Args:
        step: number of the step; once per step and session, because the sealing keys are used once.
        index: this site's index.
        session: 32 bytes.
        identity: this site's signing key.
        shared: for each other site of the session, the secret shared with it.
        threshold: how many shares give a secret back.
        random: where the mask key, then the seed, then the coefficients of the shares are drawn from.
    """
    masks, seed = KeyPair.generate(random), random.bytes(KEY_BYTES)
    entry = Entry(index, masks.public, commitment(seed))
    entry = replace(entry, signature=identity.sign(entry.text(session, step)))
    points = sorted([*shared, index])
    of_seed, of_masks = split_many([seed, masks.to_bytes()], threshold, points, random)
    bound = entry.text(session, step)
    sealed = tuple(
        Sealed(
            other, seal(_sealing(shared[other], session, step, index, other), of_seed[other] + of_masks[other], bound)
        )
        for other in sorted(shared)
    )
    message = Prepare(step, entry, sealed)
    message = replace(message, signature=identity.sign(message.text(session)))
    return Preparation(step, entry, masks, seed, of_seed[index]), message


def open_share(
    kind: Kind, sealed: bytes, entry: Entry, shared: bytes, session: bytes, step: int, own: int
) -> bytes | None:
    """The share of one of a site's two secrets that it sealed for site ``own``; None where the pair does not open."""
    try:
        pair = unseal(_sealing(shared, session, step, entry.index, own), sealed, entry.text(session, step))
    except AuthenticityError:
        return None
    return pair[:SHARE_BYTES] if kind is Kind.SEED else pair[SHARE_BYTES:]


def _sealing(shared: bytes, session: bytes, step: int, sender: int, receiver: int) -> bytes:
    return derive(
        shared, b"share", session, struct.pack("<I", step), struct.pack("<H", sender), struct.pack("<H", receiver)
    )
