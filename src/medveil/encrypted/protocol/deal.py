"""What is made ahead of one evaluation: the dealer's bytes, and both parties' halves in the order of the program."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from medveil.encrypted.program import Decide, Linear, MaxPool, Program, Relu, Rescale, Weights
from medveil.encrypted.protocol import correlations as dealt
from medveil.encrypted.protocol.linear import apply
from medveil.encrypted.protocol.pooling import passes
from medveil.encrypted.protocol.ring import Source, Stream, Wide, wide_bytes, wide_from
from medveil.encrypted.protocol.zero_test import ZeroTest, deal_zero_test
from medveil.errors import ModelError

_PURPOSE = "evaluation"


def weight_masks(program: Program, seed: bytes) -> dict[str, Wide]:
    """R of every linear layer, as vendor and dealer draw it; once a model."""
    stream = Stream(seed, "weights")
    return {layer.name: stream.wide(layer_size(layer)).reshape(layer.weight_shape) for layer in program.linears()}


def layer_size(layer: Linear) -> int:
    """Weights of a layer, without biases."""
    return prod(layer.weight_shape)


def masked_weights(program: Program, weights: Weights, seed: bytes) -> bytes:
    """What the vendor sends the hospital once a model: W - R of every layer, 6 bytes a weight."""
    masks = weight_masks(program, seed)
    return b"".join(wide_bytes(weights.weights[name].view(np.uint64) - mask) for name, mask in masks.items())


def read_masked_weights(program: Program, data: bytes | memoryview) -> dict[str, Wide]:
    """The hospital's side of :func:`masked_weights`.

    Raises:
        ModelError: bytes too many or too few.
    """
    expected = sum(6 * layer_size(layer) for layer in program.linears())
    if len(data) != expected:
        raise ModelError("The masked weights do not fit the program", got=f"{len(data)} bytes", expected=expected)
    found, at, view = {}, 0, memoryview(data)
    for layer in program.linears():
        size = layer_size(layer)
        found[layer.name] = wide_from(view[at : at + 6 * size], size).reshape(layer.weight_shape)
        at += 6 * size
    return found


def deal(
    program: Program, masks: Mapping[str, Wide], *, hospital: bytes, vendor: bytes, images: int = 1
) -> Iterator[bytes]:
    """Everything that the vendor needs for one evaluation beside its seed, in the order in which it reads it.

    Args:
        program: to be evaluated.
        masks: from :func:`weight_masks`.
        hospital: the hospital's seed, 32 fresh bytes; all that the hospital gets.
        vendor: the vendor's seed, likewise.
        images: evaluated together.

    Guarantees:
        Each party's part alone is independent of the other's, of image and weights. Used twice, it shows the difference
        of two images' values.
    """
    ours, theirs = Stream(hospital, _PURPOSE), Stream(vendor, _PURPOSE)
    shapes = {operation.name: operation.shape for operation in program.operations}
    for operation in program.operations:
        count = images * operation.size
        if isinstance(operation, Linear):
            given = shapes[operation.inputs[0]]
            r = ours.wide(images * prod(given)).reshape(images, *given)
            yield wide_bytes(apply(operation, r, masks[operation.name]).ravel() - ours.wide(count))
        elif isinstance(operation, Relu):
            parts, secret, coin = dealt.deal_signs(ours, theirs, count, limited=operation.limit is not None)
            yield from parts
            yield from dealt.deal_gate(secret, coin, ours, operation.drop)
        elif isinstance(operation, Rescale):
            yield from dealt.deal_lift(ours, theirs, count, operation.drop)
        elif isinstance(operation, MaxPool):
            for one in passes(operation, shapes[operation.inputs[0]]):
                for _ in range(one.kernel - 1):
                    parts, secret, coin = dealt.deal_signs(ours, theirs, images * one.size, limited=False)
                    yield from parts
                    yield from dealt.deal_narrow_gate(secret, coin, ours)
        elif isinstance(operation, Decide):
            yield from dealt.deal_decision(ours, theirs, count)
    if has_limits(program):
        yield deal_zero_test(ours, theirs)


@dataclass(frozen=True, eq=False)
class Half:
    """One party's correlations of one evaluation, ready to be used, once.

    Args:
        program: that they are for.
        images: evaluated together.
        linear: by operation: the hospital's (r, its half of the result), the vendor's (what the dealer added,).
        relu: by operation.
        rescale: by operation.
        largest: by operation, one for every comparison of two arrays.
        decided: for the bits that are the result; by operation.
        limits: for the check that no limit was reached; None where there are none.
    """

    program: Program
    images: int
    linear: dict[str, tuple[Wide, ...]] = field(default_factory=dict)
    relu: dict[str, tuple[dealt.Signs, dealt.Gate]] = field(default_factory=dict)
    rescale: dict[str, dealt.Lift] = field(default_factory=dict)
    largest: dict[str, list[tuple[dealt.Signs, dealt.NarrowGate]]] = field(default_factory=dict)
    decided: dict[str, dealt.Decision] = field(default_factory=dict)
    limits: ZeroTest | None = None


_Linear = Callable[[Linear, tuple[int, ...]], tuple[Wide, ...]]


def prepare_hospital(program: Program, masked: Mapping[str, Wide], seed: bytes, images: int = 1) -> Half:
    """The hospital's half: drawn from its seed, its shares of all linear layers computed ahead of time.

    Args:
        program: to be evaluated.
        masked: from :func:`read_masked_weights`.
        seed: the hospital's, 32 bytes, used once.
        images: evaluated together.
    """
    stream = Stream(seed, _PURPOSE)

    def linear(operation: Linear, given: tuple[int, ...]) -> tuple[Wide, ...]:
        r = stream.wide(images * prod(given)).reshape(images, *given)
        share = apply(operation, r, masked[operation.name])
        return r, share + stream.wide(share.size).reshape(share.shape)

    return _prepare(Half(program, images), stream, stream, linear)


def prepare_vendor(program: Program, seed: bytes, read: Callable[[int], bytes | memoryview], images: int = 1) -> Half:
    """The vendor's half: its seed, and what the dealer wrote.

    Args:
        program: to be evaluated.
        seed: the vendor's, 32 bytes, used once.
        read: gives the next so many bytes of what :func:`deal` made.
        images: evaluated together.
    """
    source = dealt.Dealt(read)

    def linear(operation: Linear, given: tuple[int, ...]) -> tuple[Wide, ...]:
        del given
        return (source.wide(images * operation.size).reshape(images, *operation.shape),)

    return _prepare(Half(program, images), Stream(seed, _PURPOSE), source, linear)


def _prepare(half: Half, own: Stream, source: Source, linear: _Linear) -> Half:
    shapes = {operation.name: operation.shape for operation in half.program.operations}
    for operation in half.program.operations:
        count = half.images * operation.size
        name = operation.name
        if isinstance(operation, Linear):
            half.linear[name] = linear(operation, shapes[operation.inputs[0]])
        elif isinstance(operation, Relu):
            told = dealt.Signs.take(own, source, count, limited=operation.limit is not None)
            half.relu[name] = told, dealt.Gate.take(source, count)
        elif isinstance(operation, Rescale):
            half.rescale[name] = dealt.Lift.take(own, source, count)
        elif isinstance(operation, MaxPool):
            half.largest[name] = [
                _comparison(own, source, half.images * one.size)
                for one in passes(operation, shapes[operation.inputs[0]])
                for _ in range(one.kernel - 1)
            ]
        elif isinstance(operation, Decide):
            half.decided[name] = dealt.Decision.take(own, source, count)
    return replace(half, limits=ZeroTest.take(own, source)) if has_limits(half.program) else half


def has_limits(program: Program) -> bool:
    """Whether some values are compared with a limit."""
    return any(isinstance(operation, Relu) and operation.limit is not None for operation in program.operations)


def _comparison(own: Stream, source: Source, count: int) -> tuple[dealt.Signs, dealt.NarrowGate]:
    return dealt.Signs.take(own, source, count, limited=False), dealt.NarrowGate.take(source, count)
