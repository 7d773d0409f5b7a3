"""From a trained network to a program and its weights: :func:`compile`.

Numbers are fixed-point, so a revealed number differs a little from the network's. ``Program.error`` bounds the
difference for every image in the declared range that is not refused at run time: every rounding at its worst, added
up through the layers' L1 norms. That is tight for a shallow network and far too large for a deep one;
``Compiled.error_rms`` is an estimate of the root mean square of the difference, through L2 norms, with roundings taken
as independent and with synthetic images in place of real ones. It is no bound.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from medveil.encrypted.compiler import bounds
from medveil.encrypted.compiler.cost import program_cost
from medveil.encrypted.compiler.fold import simplify
from medveil.encrypted.compiler.fronts import feature_range
from medveil.encrypted.compiler.graph import Step
from medveil.encrypted.compiler.lower import Lowering
from medveil.encrypted.compiler.trace import Traced, trace
from medveil.encrypted.program import FRACTION_BITS, Operation, Program, Shape, Weights
from medveil.errors import ConfigError, ModelError, UnsupportedLayer

_TOLERANCE: Final = 1e-6
_COARSE: Final = 4
# The carry that two halves lack is a coin of chance y and 1 - y: a variance of 1/6 on average over y.
_ROUNDING: Final = 6
# benchmarks/encrypted_accuracy.py prints what trained networks reach; a U-Net was seen at 193.
LIMITS: Final = tuple(2.0**power for power in range(10, 2, -1))
_INTERPOLATIONS: Final = {2: "bilinear", 3: "trilinear"}


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
        error_rms: estimate of the root mean square error of a revealed number.
    """

    program: Program
    weights: Weights
    front: nn.Module | None
    back: nn.Module | None
    input_shape: Shape
    input_range: tuple[float, float]
    error_rms: float

    def describe(self) -> dict[str, Any]:
        """What is evaluated and what it costs for one image, as plain data for JSON.

        Returns:
            ``operations`` (count by kind), ``comparisons`` and ``limits_checked`` (elements), ``parameters``,
            ``bytes_online`` (``to_vendor``, ``to_hospital``, ``both``), ``rounds`` (one-way message latencies),
            ``bytes_dealt`` (ahead of time, dealer to vendor), ``error_bound`` and ``error_rms``. Bytes are those of
            the protocol's messages, without the frames around them.
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
        }


def compile(  # noqa: A001 - the field's word, and the name in the interface
    module: nn.Module,
    input_shape: Shape,
    input_range: tuple[float, float],
    *,
    task: Literal["classification", "segmentation"] = "classification",
    names: Sequence[str] = (),
    activation_limit: float | None = None,
    reveal_bits: int = 16,
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
        reveal_bits: fraction bits of the result that the hospital learns, 0 to 16: fewer tell less of the model, and
            cost nothing. Asked for the same image again and again, the rounding averages out.

    Returns:
        Program, weights, and what the hospital does in the clear.

    Raises:
        UnsupportedLayer: a layer that is not covered, or whose values may leave the rings; named, with a remedy.
        ModelError: a network that cannot be traced, cannot read such images, or does not answer the task.
        WeightsError: weights that are not finite.
        ConfigError: a range or limit without sense, or names that do not fit.

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
    _check_answer(traced, steps[output].shape, task, names)
    with torch.no_grad():
        probes = _probes(input_shape, input_range)
        given = _input_range(traced, input_shape, input_range, probes)
        lowering, (revealed, factor, held) = _lowered(steps, output, given, limits)
        _check_probes(traced, probes, held.probes * factor)
    bits = min(reveal_bits, revealed.scale)
    program = Program(
        operations=tuple(lowering.rings.operations),
        factor=factor,
        reveal=bits,
        error=(held.error.max().item() + 2.0**-bits) * factor,
        task=task,
        names=tuple(names),
    )
    assert program.output is revealed
    return Compiled(
        program=program,
        weights=Weights(lowering.weights, lowering.biases),
        front=traced.front,
        back=traced.back,
        input_shape=tuple(input_shape),
        input_range=input_range,
        error_rms=math.sqrt(held.variance.mean().item() + 4.0**-bits / _ROUNDING) * factor,
    )


def _lowered(
    steps: Mapping[str, Step], output: str, given: bounds.Range, limits: Sequence[float]
) -> tuple[Lowering, tuple[Operation, float, bounds.Range]]:
    """The first limit with which every layer fits; the last one's refusal where none does."""
    for limit in limits[:-1]:
        lowering = Lowering(limit)
        try:
            return lowering, lowering.run(steps, output, given)
        except UnsupportedLayer:
            continue
    lowering = Lowering(limits[-1])
    return lowering, lowering.run(steps, output, given)


def _input_range(traced: Traced, input_shape: Shape, input_range: tuple[float, float], probes: Tensor) -> bounds.Range:
    low, high = input_range
    if traced.front_path is None:
        return _box(low, high, input_shape, probes)
    front = traced.plain.get_submodule(traced.front_path)
    features = front(probes)
    lows, highs, _ = feature_range(front, input_shape, low, high)
    if bool((features < lows).any()) or bool((features > highs).any()):
        raise ModelError(
            "Fixed features leave the range that was worked out for them",
            got=type(front).__name__,
            expected="features as the zoo computes them",
            remedy="report it, with the configuration of the network",
        )
    return _box(lows.min().item(), highs.max().item(), tuple(lows.shape), features)


def _box(low: float, high: float, shape: Shape, probes: Tensor) -> bounds.Range:
    """All numbers of the input between two: what the hospital can check before it sends anything."""
    ones = torch.ones(shape, dtype=torch.float64)
    norm = max(abs(low), abs(high)) * math.sqrt(ones.numel())
    return bounds.of_input(low * ones, high * ones, norm, probes)


def _probes(shape: Shape, input_range: tuple[float, float]) -> Tensor:
    """Two synthetic images that fill the range, one rough and one smooth; shape (2, *shape), float64."""
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(shape, generator=generator, dtype=torch.float64)
    smooth = torch.rand(shape, generator=generator, dtype=torch.float64)
    axes = len(shape) - 1
    if axes in _INTERPOLATIONS:
        coarse = torch.rand((1, shape[0], *(_COARSE,) * axes), generator=generator, dtype=torch.float64)
        smooth = functional.interpolate(coarse, shape[1:], mode=_INTERPOLATIONS[axes], align_corners=True)[0]
    low, high = input_range
    return low + (high - low) * torch.stack([rough, smooth])


def _check_probes(traced: Traced, probes: Tensor, answers: Tensor) -> None:
    """What was read must compute what the module computes."""
    found = answers if traced.back is None else traced.back(answers)
    expected = traced.plain(probes.clone())
    allowed = _TOLERANCE * (1 + expected.abs().max())
    if found.shape != expected.shape or not bool(((found - expected).abs() <= allowed).all()):
        raise ModelError(
            "The network computes something other than its traced layers",
            got="different answers to the same synthetic images",
            expected="a forward pass that consists of layers and does the same for every image",
            remedy="write it without state, randomness or branches",
        )


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
