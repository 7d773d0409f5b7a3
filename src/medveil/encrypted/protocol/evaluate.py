"""One evaluation by both parties: the hospital brings the image, the vendor the weights."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from medveil.encrypted.program import Decide, Linear, MaxPool, Operation, Relu, Rescale, Weights
from medveil.encrypted.protocol.activation import Link, Party, larger, parities, relu, rescale
from medveil.encrypted.protocol.deal import Half
from medveil.encrypted.protocol.linear import apply, spread
from medveil.encrypted.protocol.pooling import Values, alone, passes, windows
from medveil.encrypted.protocol.reveal import decide, reveal, said_bytes, say
from medveil.encrypted.protocol.ring import SEED_BYTES, Stream, wide_bytes, wide_from
from medveil.encrypted.protocol.zero_test import WORD_BYTES, from_bytes, to_bytes
from medveil.errors import ImageError


def hospital(half: Half, link: Link, images: NDArray[np.int64], coins: bytes) -> NDArray[np.float64]:
    """The hospital's side.

    Args:
        half: its correlations, used up by this.
        link: to the vendor.
        images: shape (N, *input shape), at the program's input scale, within its bound.
        coins: 32 fresh random bytes, for the check of the limits.

    Returns:
        What is revealed, shape (N, *output shape): within one unit of the last revealed bit of the result, on average
        the result itself; or bits, as zeros and ones.

    Raises:
        ImageError: some value inside the network reached a limit: the result would be wrong, and is thrown away.

    Guarantees:
        Against a vendor that follows the protocol and does not work with the dealer: what it receives is uniform
        whatever the images are. It does not learn whether a limit was reached, but from being asked again.
    """
    party = Party(link, first=True)

    def linear(operation: Linear, given: Values) -> Values:
        r, share = half.linear[operation.name]
        link.send(wide_bytes((given - r).ravel()))
        return share

    share = _walk(half, party, images.view(np.uint64), linear)
    test, word = half.limits, 0
    if test is not None:
        word = test.hide(parities(party.flags, Stream(coins, "parities")))
        link.send(coins + to_bytes(word))
    found = bytes(link.receive(said_bytes(half.program, half.images)))
    if test is not None:
        opened = word ^ from_bytes(link.receive(WORD_BYTES))
        if test.blur(opened) != from_bytes(link.receive(WORD_BYTES)):
            raise ImageError(
                "The image drives the network beyond the range that it was compiled for",
                reason="range",
                expected="values below the limit that the program states",
                remedy="ask the vendor to compile the model with a larger activation_limit",
            )
    return reveal(half.program, share, found, half.images)


def vendor(half: Half, link: Link, weights: Weights) -> None:
    """The vendor's side; it learns nothing but that an evaluation took place.

    Args:
        half: its correlations, used up by this.
        link: to the hospital.
        weights: of the model.

    Guarantees:
        Against a hospital that follows the protocol and does not work with the dealer: what it receives is uniform, but
        for what the result tells.
    """
    party = Party(link, first=False)

    def linear(operation: Linear, given: Values) -> Values:
        (dealt,) = half.linear[operation.name]
        masked = wide_from(link.receive(6 * given.size), given.size).reshape(given.shape)
        result = apply(operation, masked + given, weights.weights[operation.name])
        result += spread(weights.biases[operation.name], operation) + dealt
        return result

    nothing = np.zeros((half.images, *half.program.input.shape), np.uint64)
    share = _walk(half, party, nothing, linear)
    said = b""
    if half.limits is not None:
        coins, theirs = bytes(link.receive(SEED_BYTES)), from_bytes(link.receive(WORD_BYTES))
        word = half.limits.hide(parities(party.flags, Stream(coins, "parities")))
        said = to_bytes(word) + to_bytes(half.limits.blur(word ^ theirs))
    link.send(say(half.program, share) + said)


def _walk(half: Half, party: Party, start: Values, linear: Callable[[Linear, Values], Values]) -> Values:
    """Evaluate every operation; values are forgotten after their last use."""
    program = half.program
    last = {name: place for place, operation in enumerate(program.operations) for name in operation.inputs}
    held: dict[str, Values] = {program.input.name: start}
    for place, operation in enumerate(program.operations[1:], start=1):
        given = [held[name] for name in operation.inputs]
        held[operation.name] = _perform(operation, given, half, party, linear)
        for name in operation.inputs:
            if last[name] == place:
                held.pop(name, None)
    return held[program.output.name]


def _perform(
    operation: Operation,
    given: list[Values],
    half: Half,
    party: Party,
    linear: Callable[[Linear, Values], Values],
) -> Values:
    if isinstance(operation, Linear):
        return linear(operation, given[0])
    if isinstance(operation, Relu):
        dealt = half.relu[operation.name]
        return relu(party, given[0].ravel(), dealt, operation.drop, operation.limit).reshape(given[0].shape)
    if isinstance(operation, Rescale):
        lift = half.rescale[operation.name]
        return rescale(party, given[0].ravel(), lift, operation.drop).reshape(given[0].shape)
    if isinstance(operation, MaxPool):
        return _largest(operation, given[0], half, party)
    if isinstance(operation, Decide):
        return decide(party, operation, given, half.decided[operation.name])
    result = alone(operation, given, first=party.first)
    assert result is not None, operation
    return result


def _largest(operation: MaxPool, values: Values, half: Half, party: Party) -> Values:
    comparisons = iter(half.largest[operation.name])
    for one in passes(operation, values.shape[1:]):
        candidates = windows(values, one, first=party.first)
        values = candidates[0]
        for candidate in candidates[1:]:
            values = larger(party, candidate.ravel(), values.ravel(), next(comparisons)).reshape(candidate.shape)
    return values
