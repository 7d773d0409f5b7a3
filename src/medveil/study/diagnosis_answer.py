"""What a hospital learns of an image, as an answer to read, and in words before it sends anything."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from medveil.encrypted.compiler.decision import TWO, cuts, distances, told_thresholds
from medveil.encrypted.program import Program
from medveil.errors import ConfigError, ProtocolError
from medveil.study.diagnosis import Description


def shown(logits: torch.Tensor, description: Description) -> torch.Tensor:
    """What a hospital would learn of these logits: themselves, or bits in the form of a program's.

    Args:
        logits: shape (N, classes, ...).
        description: of the model.
    """
    if description.reveal == "logits":
        return logits
    wanted = cuts(description.reveal, logits.shape[1], description.levels, description.threshold)
    values = distances(logits)
    return torch.stack([values >= cut for cut in wanted], 1).double()


def answer(found: torch.Tensor, description: Description) -> dict[str, Any]:
    """What a reader wants to know of one image.

    Args:
        found: from :func:`decode` or :func:`shown`.
        description: of the model.

    Returns:
        ``label`` and, but for a label alone, ``probabilities`` by class; or ``mask`` (rows of class indices) and
        ``pixels`` by class.
    """
    names = description.class_names
    if description.task == "segmentation":
        mask = found[0].argmax(0) if description.reveal == "logits" else _first(found[0, 0])
        counts = torch.bincount(mask.flatten(), minlength=len(names)).tolist()
        return {"mask": mask.tolist(), "pixels": dict(zip(names, counts, strict=True))}
    if description.reveal == "logits":
        probabilities = found[0].softmax(0).tolist()
        place = int(np.argmax(probabilities))
        if description.threshold is not None and len(names) == TWO:
            place = int(probabilities[1] >= description.threshold)
    else:
        place = int(_first(found[0, 0]))
        probabilities = _rounded(found[0, 1:], description.levels)
    told = dict(zip(names, probabilities, strict=True)) if probabilities else None
    return {"label": names[place]} | ({} if told is None else {"probabilities": told})


def _first(bits: torch.Tensor) -> torch.Tensor:
    """Which class is said: of several that are as good as equal the first; for two classes there is one bit."""
    return bits[0].long() if len(bits) == 1 else torch.from_numpy(np.asarray(bits.numpy().argmax(0)))


def _rounded(bits: torch.Tensor, levels: int) -> list[float]:
    """Probabilities from the bits of all levels, shape (levels, classes or 1); none where there are no bits."""
    if not len(bits):
        return []
    found = bits.sum(0) / levels
    together = torch.stack([1 - found[0], found[0]]) if len(found) == 1 else found / found.sum()
    told: list[float] = together.tolist()
    return told


def leakage(description: Description, shape: Sequence[int]) -> dict[str, Any]:
    """Who learns what from one diagnosis, for programs and readers.

    Args:
        description: of the model.
        shape: of what is revealed.
    """
    return {
        "adversary": "semi-honest: all parties follow the protocol",
        "hospital_learns": [
            *_learned(description, shape),
            "of the model: architecture, shapes, ranges, which ReLUs have a limit, bits kept, the order of its error",
        ],
        "vendor_learns": ["that an evaluation took place, and when"],
        "dealer_learns": [
            "what the hospital learns of the model but for the answer",
            "how many evaluations were dealt",
        ],
        "breaks_if": [
            "dealer and vendor work together: they see the image",
            "dealer and hospital work together: they see the weights",
            "the dealer reads what hospital and vendor say to each other, which TLS prevents",
        ],
        "not_detected": "a party that deviates can spoil the result, and may learn more than is said here",
        "answers_accumulate": "many answers together reveal the model: count and limit requests",
    }


def _learned(description: Description, shape: Sequence[int]) -> list[str]:
    """What is revealed of one image."""
    if description.reveal == "logits":
        return [f"logits to {description.reveal_bits} fraction bits, shape {list(shape)}"]
    names, found = description.class_names, []
    segmentation = description.task == "segmentation"
    where = " of every pixel" if segmentation else ""
    if len(names) == TWO:
        least = 0.5 if description.threshold is None else description.threshold
        found.append(f"the label{where}: whether the probability of {names[1]} is at least {least:g}; no logit")
    else:
        found.append(f"the label{where}, and classes whose logits are as good as equal to the largest; no logit")
    if description.reveal == "probabilities":
        what = f"the probability of {names[1]}" if len(names) == TWO else "every probability, divided by the largest,"
        found.append(f"{what} rounded to 1/{description.levels}")
    return found


def check_told(description: Description, program: Program) -> None:
    """What a vendor tells and what it would have evaluated are the same.

    Raises:
        ProtocolError: they are not.
    """
    told = (description.task, description.class_names, description.reveal_bits)
    same = told == (program.task, program.names, program.reveal)
    if not same or not _ends_as_told(description, program):
        raise ProtocolError(
            "A vendor's description and its program say different things",
            expected="the same task, classes and revealed bits",
            remedy="do not use this vendor's model",
        )


def _ends_as_told(description: Description, program: Program) -> bool:
    """Whether as many logits, or the bits that were told and no others, are what the program reveals."""
    classes, ends = len(program.names), program.decision
    if description.reveal == "logits" or ends is None:
        return description.reveal == "logits" and ends is None and program.output.shape[0] == classes
    threshold = description.threshold if classes == TWO else None
    try:
        wanted = told_thresholds(program, description.reveal, description.levels, threshold)
    except ConfigError:
        return False
    inputs, channels = (1, 1) if classes == TWO else (2, classes)
    return (len(ends.inputs), ends.shape[1], ends.thresholds) == (inputs, channels, wanted)
