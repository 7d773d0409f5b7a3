"""Which functions of the engine are ours already: a rule is put in front of each of them once."""

from collections.abc import Callable

_KEPT: list[Callable[..., object]] = []


def mark(function: Callable[..., object]) -> None:
    """Note that this function stands in for one of the engine's; it is kept for as long as the process lives."""
    _KEPT.append(function)


def marked(function: Callable[..., object]) -> bool:
    """Whether this function is one of ours."""
    return any(function is ours for ours in _KEPT)
