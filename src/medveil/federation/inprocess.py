"""The embedded transport: all sites in this process, a thread each as far as there are cores."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

from medveil.errors import MedveilError, MessageError, ProtocolError
from medveil.federation.coordinator import Coordinator, Outgoing
from medveil.federation.site import Site
from medveil.federation.transport import Traffic


class InProcess:
    """Delivers messages between objects; answers reach the coordinator in a fixed order.

    Args:
        sites: by name.
        workers: sites that compute at the same time.
        traffic: bytes of an earlier part of the run, to count on from.
    """

    name = "in-process"

    def __init__(self, sites: Mapping[str, Site], *, workers: int, traffic: Traffic | None = None) -> None:
        self._sites = dict(sites)
        self._workers = workers
        self._sent: Counter[str] = Counter(dict.fromkeys(sites, 0))
        self._received: Counter[str] = Counter(dict.fromkeys(sites, 0))
        if traffic is not None:
            self._sent.update(traffic.sent)
            self._received.update(traffic.received)

    def run(self, coordinator: Coordinator) -> None:
        """Deliver messages until the coordinator is done.

        A site that raises a :class:`MedveilError`, or whose message the coordinator refuses, is reported to the
        coordinator as gone.
        """
        outgoing: list[Outgoing] = []
        for name in sorted(self._sites):
            if name not in coordinator.lost:
                outgoing += self._join(coordinator, name)
        with ThreadPoolExecutor(max_workers=self._workers) as pool:
            while not coordinator.done:
                outgoing = self._exchange(coordinator, pool, outgoing) or self._give_up(coordinator)
            self._exchange(coordinator, pool, outgoing)

    def traffic(self) -> Traffic:
        """Bytes carried so far."""
        return Traffic(dict(self._sent), dict(self._received))

    def _join(self, coordinator: Coordinator, name: str) -> list[Outgoing]:
        try:
            message = self._sites[name].join()
        except MedveilError as error:  # the site refuses to take part
            if len(self._sites) == 1:
                raise
            return coordinator.lose(name, str(error))
        return self._hand_in(coordinator, [(name, [message])])

    def _exchange(self, coordinator: Coordinator, pool: Executor, outgoing: Sequence[Outgoing]) -> list[Outgoing]:
        """Give every site its message and the coordinator the answers, in the order of ``outgoing``."""
        futures = [pool.submit(self._sites[message.site].receive, message.data) for message in outgoing]
        following: list[Outgoing] = []
        try:
            for message, future in zip(outgoing, futures, strict=True):
                self._received[message.site] += len(message.data)
                try:
                    answers = future.result()
                except MedveilError as error:
                    following += coordinator.lose(message.site, error.what)
                else:
                    following += self._hand_in(coordinator, [(message.site, answers)])
        except BaseException:  # Ctrl-C too: nothing that waits is begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return following

    @staticmethod
    def _give_up(coordinator: Coordinator) -> list[Outgoing]:
        """Every message was delivered and the training has not ended: whoever was to answer is gone.

        Raises:
            ProtocolError: nobody was.
        """
        if coordinator.done:
            return []
        if not coordinator.awaited:
            raise ProtocolError("The training stands still", got=f"phase {coordinator.phase}", expected="an answer")
        return [sent for site in coordinator.awaited for sent in coordinator.lose(site, "The site did not answer")]

    def _hand_in(self, coordinator: Coordinator, answers: Iterable[tuple[str, list[bytes]]]) -> list[Outgoing]:
        outgoing: list[Outgoing] = []
        for name, messages in answers:
            for data in messages:
                self._sent[name] += len(data)
                try:
                    outgoing += coordinator.receive(name, data)
                except (MessageError, ProtocolError) as error:  # one site's fault is not the others'
                    outgoing += coordinator.lose(name, error.what)
                    break
        return outgoing
