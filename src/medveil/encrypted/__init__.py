"""Diagnosis on encrypted images: the hospital shows no image, the vendor no weights.

``compile`` turns a trained network into a program and its weights; :mod:`~medveil.encrypted.vendor`,
:mod:`~medveil.encrypted.hospital` and :mod:`~medveil.encrypted.dealer` are the three parties.
"""

from typing import TYPE_CHECKING, Any

from medveil.errors import UnsupportedLayer

if TYPE_CHECKING:
    from medveil.encrypted.compiler.main import Compiled, compile  # noqa: A004 - the field's word

__all__ = ["Compiled", "UnsupportedLayer", "compile"]


def __getattr__(name: str) -> Any:
    """The compiler needs torch, which stores and links do without; it is imported when it is asked for."""
    if name not in {"Compiled", "compile"}:
        raise AttributeError(name)
    from medveil.encrypted.compiler import main

    return getattr(main, name)
