"""From a trained network to a program and its weights: :func:`compile`.

Numbers are fixed-point, so a revealed number differs a little from the network's. ``Program.error`` bounds the
difference for every image in the declared range that is not refused at run time: every rounding at its worst, added
up through the layers' L1 norms. That is tight for a shallow network and far too large for a deep one;
``Compiled.error_rms`` is an estimate of the root mean square of the difference: what it is for synthetic images, with
the weights as they are rounded and the other roundings drawn at random. It is no bound.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

from medveil.encrypted.compiler.bounds import Range
from medveil.encrypted.compiler.choose import lowered
from medveil.encrypted.compiler.cost import program_cost
from medveil.encrypted.compiler.decision import LEVELS, TWO, cuts, decided, distances, with_difference
from medveil.encrypted.compiler.fold import simplify
from medveil.encrypted.compiler.probes import check_answers, of_images, synthetic
from medveil.encrypted.compiler.rings import Rings, Value
from medveil.encrypted.compiler.trace import Traced, trace
from medveil.encrypted.fitting import MOST_HIDDEN
from medveil.encrypted.program import FRACTION_BITS, WIDE_BITS, Operation, Program, Reveal, Shape, Weights
from medveil.errors import ConfigError, ModelError

# The carry that two halves lack is a coin of chance y and 1 - y: a variance of 1/6 on average over y.
_ROUNDING: Final = 6
# benchmarks/encrypted_accuracy.py prints what trained networks reach; a U-Net was seen at 193.
LIMITS: Final = tuple(2.0**power for power in range(10, 2, -1))
# How many times its root mean square an error is stated to be at most.
_STATED: Final = 6


@dataclass(frozen=True, eq=False)
class Compiled:
    """A network, ready for encrypted evaluation.

    Args:
        program: public.
        weights: the vendor's secret.
        front: fixed features without trained weights, float32, evaluation mode: the hospital computes them in the
            clear, and the program reads their result. None where the program reads the image.
        back: interpolation (N, classes, *small) -> (N, classes, *large) of what is revealed, without weights, by the
            hospital in the clear; None where the program's result is the network's.
        input_shape: of an image, before ``front``.
        input_range: smallest and largest pixel for which the program's bounds hold; the hospital refuses others.
        error_rms: estimate of the root mean square error of a revealed number, or of one that is compared.
    """

    program: Program
    weights: Weights
    front: nn.Module | None
    back: nn.Module | None
    input_shape: Shape
    input_range: tuple[float, float]
    error_rms: float

    @property
    def error_stated(self) -> float:
        """What errors are stated to be at most: the certified bound, or six times ``error_rms`` where that is less.

        In the second case it is an estimate: nothing keeps an image from a larger error.
        """
        return min(self.program.error, _STATED * self.error_rms)

    def describe(self) -> dict[str, Any]:
        """What is evaluated and what it costs for one image, as plain data for JSON.

        Returns:
            ``operations`` (count by kind), ``comparisons`` and ``limits_checked`` (elements), ``parameters``,
            ``bytes_online`` (``to_vendor``, ``to_hospital``, ``both``), ``rounds`` (one-way message latencies),
            ``bytes_dealt`` (ahead of time, dealer to vendor), ``error_bound`` (certified), ``error_rms`` and
            ``error_stated`` (estimates). Bytes are those of the protocol's messages, without the frames around them.
        """
        cost = program_cost(self.program)
        kinds = Counter(type(each).__name__ for each in self.program.operations)
        return {
            "task": self.program.task,
            "input_shape": list(self.input_shape),
            "input_range": list(self.input_range),
            "front": None if self.front is None else type(self.front).__name__,
            "back": None if self.back is None else type(self.back).__name__,
            "operations": dict(sorted(kinds.items())),
            "parameters": sum(
                each.size for part in (self.weights.weights, self.weights.biases) for each in part.values()
            ),
            "comparisons": cost.comparisons,
            "limits_checked": cost.limits,
            "bytes_online": {
                "to_vendor": cost.to_vendor,
                "to_hospital": cost.to_hospital,
                "both": cost.to_vendor + cost.to_hospital,
            },
            "rounds": cost.latencies,
            "bytes_dealt": cost.dealt,
            "error_bound": self.program.error,
            "error_rms": self.error_rms,
            "error_stated": self.error_stated,
        }


def compile(  # noqa: A001 - the field's word, and the name in the interface
    module: nn.Module,
    input_shape: Shape,
    input_range: tuple[float, float],
    *,
    task: Literal["classification", "segmentation"] = "classification",
    names: Sequence[str] = (),
    activation_limit: float | None = None,
    reveal: Reveal = "logits",
    reveal_bits: int = 16,
    levels: int = 20,
    threshold: float | None = None,
) -> Compiled:
    """Compile a trained network.

    Args:
        module: left as it is; its copy in evaluation mode is compiled.
        input_shape: (channels, *spatial) of one image, or (features,).
        input_range: smallest and largest pixel of any image.
        task: what the network answers: (classes,) or (classes, *spatial), logits.
        names: of the classes; empty for none.
        activation_limit: > 0. Where values before a ReLU might exceed it, that is checked at run time, and an image
            for which it happens is refused; bounds of later layers rest on it. None takes the largest power of two
            from 1024 down to 8 with which every layer fits.
        reveal: what the hospital learns: logits, probabilities rounded to 1/levels (classification; with the label), or
            the label (of every pixel, for a segmentation).
        reveal_bits: fraction bits of revealed logits, 0 to 16: fewer tell less of the model, and cost nothing. Asked
            for the same image again and again, the rounding averages out.
        levels: of revealed probabilities, 2 to 1000.
        threshold: of the probability of class 1 from which on it is the label, for two classes; None for 1/2.

    Returns:
        Program, weights, and what the hospital does in the clear.

    Raises:
        UnsupportedLayer: a layer that is not covered, or whose values may leave the rings; named, with a remedy.
        ModelError: a network that cannot be traced, cannot read such images, or does not answer the task.
        WeightsError: weights that are not finite.
        ConfigError: a range, limit, level or threshold without sense, names that do not fit, or an answer that this
            network cannot be reduced to.

    Guarantees:
        No value leaves its ring, whatever the image in the declared range and whatever the masks, unless the check of
        the limits refuses the result. The steps that were read are compared with the module on synthetic images
        before they are turned into integers.

    >>> compiled = compile(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2), (0.0, 1.0))
    >>> compiled.describe()["operations"]
    {'Input': 1, 'Linear': 1, 'Reshape': 1}
    """
    limits = LIMITS if activation_limit is None else (activation_limit,)
    _check_arguments(input_shape, input_range, limits[-1], reveal_bits)
    traced = trace(module, input_shape)
    steps, output = simplify(traced.steps, traced.output)
    classes = steps[output].shape[0]
    _check_answer(traced, steps[output].shape, task, names)
    numbers = reveal == "logits"
    _check_reveal(traced, reveal, classes, task, levels, threshold)
    if not numbers and classes == TWO:
        steps, output = with_difference(steps, output)
    wanted = () if numbers else cuts(reveal, classes, levels, threshold)
    with torch.no_grad():
        probes = synthetic(input_shape, input_range)
        found = lowered(
            steps,
            output,
            of_images(traced, input_shape, input_range, probes),
            limits=limits,
            largest_scale=MOST_HIDDEN + reveal_bits if numbers else None,
            end=lambda rings, value: (
                _whole(rings, value, reveal_bits) if numbers else decided(rings, value, classes, wanted)
            ),
        )
        check_answers(traced, probes, found.held.probes * found.factor, _identity if numbers else distances)
    bits = min(reveal_bits, found.output.scale)
    last = 2.0**-bits if numbers else 0.0
    program = Program(
        operations=tuple(found.lowering.rings.operations),
        factor=found.factor,
        reveal=bits,
        error=found.held.error.max().item() * found.factor + last * found.factor,
        task=task,
        names=tuple(names),
    )
    assert program.output is found.output
    return Compiled(
        program=program,
        weights=Weights(found.lowering.weights, found.lowering.biases),
        front=traced.front,
        back=traced.back,
        input_shape=tuple(input_shape),
        input_range=input_range,
        error_rms=math.hypot(found.error_rms, last / math.sqrt(_ROUNDING) * found.factor),
    )


def _whole(rings: Rings, value: Value, reveal_bits: int) -> tuple[Operation, Range]:
    """Numbers are revealed as they are in the wide ring, with room for the unit by which dropping bits may err.

    Raises:
        UnsupportedLayer: there is no room.
    """
    last = rings.wide(value)
    hidden = last.scale - min(reveal_bits, last.scale)
    most = (2.0 ** (WIDE_BITS - 1) - 2.0**hidden) / 2.0**last.scale
    if last.bound >= most:
        raise rings.too_large(last.bound, most)
    return last, rings.ranges[last.name]


def _identity(logits: Tensor) -> Tensor:
    return logits


def _check_arguments(
    input_shape: Shape, input_range: tuple[float, float], activation_limit: float, reveal_bits: int
) -> None:
    low, high = input_range
    if not 0 <= reveal_bits <= FRACTION_BITS:
        raise ConfigError("So many bits cannot be revealed", got=reveal_bits, expected=f"0 to {FRACTION_BITS}")
    if not input_shape or min(input_shape) < 1:
        raise ConfigError("The shape of the images is empty", got=input_shape, expected="(channels, *spatial)")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError("The range of the pixels has no sense", got=input_range, expected="(low, high), low < high")
    if not (math.isfinite(activation_limit) and activation_limit > 0):
        raise ConfigError("The limit of activations has no sense", got=activation_limit, expected="more than 0")


def _check_answer(traced: Traced, shape: Shape, task: str, names: Sequence[str]) -> None:
    classification = task == "classification"
    if classification != (len(shape) == 1) or (traced.back is not None and classification):
        raise ModelError(
            f"The network's answer does not fit the task {task}",
            got=f"shape {shape} for one image",
            expected="(classes,)" if classification else "(classes, *spatial)",
            remedy="name the other task, or choose another network",
        )
    if names and len(names) != shape[0]:
        raise ConfigError("The names do not fit the classes", got=len(names), expected=shape[0])


def _check_reveal(traced: Traced, reveal: str, classes: int, task: str, levels: int, threshold: float | None) -> None:
    if reveal not in get_args(Reveal):
        raise ConfigError("Nothing of that name can be revealed", got=reveal, expected=", ".join(get_args(Reveal)))
    if threshold is not None and (reveal == "logits" or classes != TWO or not 0 <= threshold <= 1):
        raise ConfigError(
            "An operating threshold decides between two classes whose label is revealed",
            got=f"threshold {threshold:g}, {classes} classes, {reveal}",
            expected="a probability from 0 to 1, two classes, and a label or probabilities",
            remedy="leave it out",
        )
    if reveal == "logits":
        return
    if reveal == "probabilities" and not LEVELS[0] <= levels <= LEVELS[1]:
        raise ConfigError("So many levels make no sense", got=levels, expected=f"{LEVELS[0]} to {LEVELS[1]}")
    if classes < TWO or traced.back is not None or (reveal == "probabilities" and task != "classification"):
        why = "one class" if classes < TWO else f"a network for {task}"
        raise ConfigError(
            "This network's answer cannot be reduced under encryption",
            got=f"{reveal}, {why}" if traced.back is None else f"{reveal}, a network that ends with an interpolation",
            expected="two classes or more, probabilities for classification only, no interpolation at the end",
            remedy='reveal = "logits", with fewer reveal_bits to show less',
        )
