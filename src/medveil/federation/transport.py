"""The contract of a transport: carry messages until the coordinator is done."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from medveil.federation.coordinator import Coordinator


@dataclass(frozen=True)
class Traffic:
    """Bytes of messages, per site.

    Args:
        sent: from each site to the coordinator.
        received: from the coordinator to each site.
    """

    sent: Mapping[str, int]
    received: Mapping[str, int]


class Transport(Protocol):
    """Carries bytes between one coordinator and its sites.

    A transport delivers every message at most once and unchanged, tells the coordinator when a site is gone
    (:meth:`Coordinator.lose`) or has sent what the coordinator refuses, and knows nothing of what the bytes mean.
    """

    name: str

    def run(self, coordinator: Coordinator) -> None:
        """Deliver messages until the coordinator is done.

        Raises:
            MedveilError: the coordinator cannot go on.
        """
        ...

    def traffic(self) -> Traffic:
        """Bytes carried so far."""
        ...
