"""What a network becomes: a list of typed operations on shared fixed-point numbers, without its weights.

The program is public: hospital, vendor and dealer hold the same one. The weights (:class:`Weights`) are the vendor's.
Shapes leave out the batch. ``scale`` counts fraction bits: a number v stands for v / 2**scale, times ``factor``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FRACTION_BITS = 16
WIDE_BITS = 48
NARROW_BITS = 32
# A narrow value stays below this, so that its sign and its wrap-around can be told apart.
NARROW_LIMIT = 2**30

Shape = tuple[int, ...]
Reveal = Literal["logits", "probabilities", "label"]
LinearKind = Literal["linear", "conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d"]


@dataclass(frozen=True)
class Operation:
    """One step. Every subclass says what it does to its inputs.

    Args:
        name: of its result, unique in the program.
        inputs: names of the results it takes.
        shape: of its result.
        scale: fraction bits of its result.
        narrow: whether the result lives in the ring of 32 bits.
        bound: the result's absolute value is at most bound * 2**scale; certified, or checked while it is evaluated. It
            follows from the weights: but for the input's it stays with the vendor, and a program that was sent has 0.
    """

    name: str
    inputs: tuple[str, ...]
    shape: Shape
    scale: int
    narrow: bool
    bound: float

    @property
    def size(self) -> int:
        """Numbers in the result, for one image."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Input(Operation):
    """The image, known to the hospital.

    Args:
        low: smallest number for which the program's bounds hold.
        high: largest number.
    """

    low: float
    high: float


@dataclass(frozen=True)
class Linear(Operation):
    """A linear layer with the vendor's weights.

    Args:
        kind: which one.
        weight_shape: as torch has it.
        stride: one number an axis; empty for "linear", as the next four.
        padding: likewise; of transposed convolutions as torch has it.
        dilation: likewise.
        output_padding: likewise; zeros but for transposed convolutions.
        groups: of channels.
    """

    kind: LinearKind
    weight_shape: Shape
    stride: Shape = ()
    padding: Shape = ()
    dilation: Shape = ()
    output_padding: Shape = ()
    groups: int = 1


@dataclass(frozen=True)
class Narrow(Operation):
    """Drops the last ``drop`` bits and goes to the ring of 32 bits; local."""

    drop: int


@dataclass(frozen=True)
class Relu(Operation):
    """max(0, x) of a narrow value, in the wide ring with ``drop`` fewer fraction bits.

    Args:
        drop: 0 to 8.
        limit: in units of the narrow value; a value of at least ``limit`` is noticed at the end, and the result is
            refused. None where no image can reach it.
    """

    drop: int
    limit: int | None


@dataclass(frozen=True)
class Rescale(Operation):
    """A narrow value in the wide ring, with ``drop`` fewer fraction bits."""

    drop: int


@dataclass(frozen=True)
class MaxPool(Operation):
    """Largest value of every window of a narrow value; windows are taken axis by axis, last axis first.

    Args:
        kernel: one number an axis.
        stride: likewise.
        padding: likewise, on both sides, with values below all others.
    """

    kernel: Shape
    stride: Shape
    padding: Shape


@dataclass(frozen=True)
class SumPool(Operation):
    """Sum over every window, not padded; local. The divisor is in the scale and in later weights.

    Args:
        kernel: one number an axis; also the stride.
    """

    kernel: Shape


@dataclass(frozen=True)
class Add(Operation):
    """Sum of the inputs, each shifted left by so many bits; local."""

    shifts: tuple[int, ...]


@dataclass(frozen=True)
class Concat(Operation):
    """Inputs one behind the other along the channels, each shifted left by so many bits; local."""

    shifts: tuple[int, ...]


@dataclass(frozen=True)
class Upsample(Operation):
    """Every value repeated ``factors`` times an axis; local."""

    factors: Shape


@dataclass(frozen=True)
class Reshape(Operation):
    """The same numbers in another shape; local."""


@dataclass(frozen=True)
class Decide(Operation):
    """Bits [value >= threshold], which nobody but the hospital learns.

    The value is a narrow one, or its distance from a second input, its largest over the classes. Shape (thresholds,
    *the value's). A value at most one unit away from a threshold may be misread.

    Args:
        thresholds: in units of the narrow value; below zero where there are two inputs.
    """

    thresholds: Shape


@dataclass(frozen=True)
class Program:
    """Operations in the order in which they are evaluated.

    Args:
        operations: the first is the :class:`Input`; the last one's result is what is revealed.
        factor: what a revealed number, or one that is compared, is multiplied with after its scale.
        reveal: fraction bits of the result that the hospital learns; the rest never leaves the vendor's half. None of
            bits.
        error: bound on the absolute error of a revealed number, from the rounding of weights, values and the result. Of
            bits: they are right where the number that is compared is farther than this from its threshold.
        task: what the result means.
        names: of the classes.
    """

    operations: tuple[Operation, ...]
    factor: float
    reveal: int
    error: float
    task: Literal["classification", "segmentation"]
    names: tuple[str, ...]

    @property
    def input(self) -> Operation:
        """The image."""
        return self.operations[0]

    @property
    def output(self) -> Operation:
        """What is revealed."""
        return self.operations[-1]

    @property
    def decision(self) -> Decide | None:
        """The last operation, where bits are revealed and no numbers."""
        return self.output if isinstance(self.output, Decide) else None

    @property
    def hidden(self) -> int:
        """Lowest bits of the result that are not revealed."""
        return self.output.scale - self.reveal

    def linears(self) -> tuple[Linear, ...]:
        """Layers that have weights."""
        return tuple(operation for operation in self.operations if isinstance(operation, Linear))


@dataclass(frozen=True, eq=False)
class Weights:
    """The vendor's secret: integer weights at the scales that the program fixes.

    Args:
        weights: by name of the layer; int64, shape ``weight_shape``.
        biases: by name of the layer; int64, shape (channels,), at the scale of the layer's result.
    """

    weights: Mapping[str, NDArray[np.int64]]
    biases: Mapping[str, NDArray[np.int64]]
