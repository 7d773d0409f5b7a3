"""Bytes of a message, read without trust: every length is checked before anything is taken or set aside."""

import struct
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

from medveil.errors import MessageError

RecordT = TypeVar("RecordT")

U8, U16, U32, U64 = (struct.Struct(f"<{code}") for code in "BHIQ")


class Reader:
    """Takes fields from the front of a message.

    Args:
        data: the whole message; nothing is copied before it is taken.
    """

    def __init__(self, data: bytes) -> None:
        self._left = memoryview(data)

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes.

        Raises:
            MessageError: fewer are left.
        """
        if count > len(self._left):
            raise MessageError(
                "A message ends too soon", got=f"{len(self._left)} bytes", expected=f"{count} more bytes"
            )
        taken, self._left = bytes(self._left[:count]), self._left[count:]
        return taken

    def number(self, form: struct.Struct) -> int:
        """The next number, in one of the forms ``U8`` to ``U64``."""
        return int(form.unpack(self.take(form.size))[0])

    def index(self) -> int:
        """The next site's index, at least 1."""
        if (index := self.number(U16)) == 0:
            raise MessageError("A message names no site", got="index 0", expected="an index from 1")
        return index

    def step(self) -> int:
        """The next number of a step, at least 1."""
        if (step := self.number(U32)) == 0:
            raise MessageError("A message names no step", got="step 0", expected="a step from 1")
        return step

    def records(self, read: Callable[["Reader"], RecordT], size: int, key: Callable[[RecordT], int]) -> list[RecordT]:
        """A count (u16) and so many records of ``size`` bytes each, in strictly ascending order of ``key``."""
        count = self.number(U16)
        if count * size > len(self._left):
            raise MessageError(
                "A message ends within a list", got=f"{len(self._left)} bytes", expected=f"{count} records of {size}"
            )
        found = [read(self) for _ in range(count)]
        keys = [key(record) for record in found]
        if any(one >= other for one, other in pairwise(keys)):
            raise MessageError("A list is out of order or names a site twice", expected="each site once, by index")
        return found

    def rest(self) -> memoryview:
        """All that is left, not copied."""
        taken, self._left = self._left, self._left[len(self._left) :]
        return taken

    def end(self) -> None:
        """Nothing may be left.

        Raises:
            MessageError: something is.
        """
        if len(self._left):
            raise MessageError("A message goes on after its end", got=f"{len(self._left)} bytes too many")
