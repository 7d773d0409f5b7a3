"""Values of control messages, which the other party chose."""

from medveil.errors import ProtocolError


def whole(value: object) -> int:
    """The value, if it is a whole number from 1.

    Raises:
        ProtocolError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ProtocolError("A number was expected", got=type(value).__name__, expected="a whole number from 1")
    return value
