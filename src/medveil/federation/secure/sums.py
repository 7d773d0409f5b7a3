"""Secure sums outside the rounds of a training: one vector a site, one sum that the server opens."""

import hashlib
from collections import deque
from collections.abc import Mapping, Sequence

from medveil.errors import ConfigError
from medveil.federation.secure.settings import SecureAggregation
from medveil.secagg.identity import IdentityKey
from medveil.secagg.opening import Opened
from medveil.secagg.parameters import Parameters, least_threshold
from medveil.secagg.ring import RingVector
from medveil.secagg.server import Outgoing, ServerSession
from medveil.secagg.site import SiteSession

# Bytes of a word, axes of a vector.
_WORDS = (8, 1)


def secure_sums(
    vectors_by_site: Mapping[str, RingVector],
    settings: SecureAggregation,
    *,
    context: str,
    origin: str = "",
    absent: Sequence[str] = (),
) -> Opened:
    """Add up one vector a site with all parties in this process; nobody but its site sees a vector.

    All sites are in one sum, whatever ``settings.groups`` says: it takes no robust combination, and a larger sum hides
    each site better. Several statistics are one vector, one behind the other.

    Args:
        vectors_by_site: of equal length, 64 bits.
        settings: colluding, dropouts, threshold, chunk_bytes.
        context: what is summed and for which plan; sites answer only to the same.
        origin: what the vectors were computed from, such as the fingerprint of a model; a site helps to open a sum
            only where all state the same.
        absent: sites of the plan that cannot answer.

    Returns:
        The sum modulo 2**64 and the sites in it.

    Raises:
        ConfigError: vectors that differ in length or are not of 64 bits.
        GuaranteeError: the sum would hide nobody, or the threshold cannot protect.
        TooFewSitesError: too many sites are absent.

    Guarantees:
        As of :class:`~medveil.secagg.site.SiteSession`: the server and ``settings.colluding`` sites learn the sum over
        the others, and nothing else. That holds for one sum. Sums of the same numbers over different sites would show
        their difference, so a site gives the same statistic of the same data only once, or to the same sites again.
    """
    lengths = {(vector.size, vector.itemsize, vector.ndim) for vector in vectors_by_site.values()}
    if len(lengths) > 1 or any((size, dimensions) != _WORDS for _, size, dimensions in lengths):
        raise ConfigError("The sites' vectors do not fit together", expected="equal lengths, words of 64 bits")
    keys = {name: IdentityKey.generate() for name in (*vectors_by_site, *absent)}
    parameters = sum_parameters({name: key.public for name, key in keys.items()}, settings, context)
    server = ServerSession(parameters)
    sites = {name: SiteSession(parameters, name, keys[name]) for name in vectors_by_site}
    for name in absent:
        server.lose(name)
    for name, site in sites.items():
        _carry(server, sites, server.receive(name, site.advertise()))
    stated = hashlib.sha256(origin.encode()).digest()
    _carry(server, sites, server.begin(64, next(iter(lengths))[0], stated))
    for name, site in sites.items():
        for data in site.submit(vectors_by_site[name], stated):
            _carry(server, sites, server.receive(name, data))
    assert server.opened is not None
    return server.opened


def sum_parameters(public_keys: Mapping[str, bytes], settings: SecureAggregation, context: str) -> Parameters:
    """What the parties of one sum over all sites agree on.

    Args:
        public_keys: identity key of every site.
        settings: of the plan; a threshold that is stated for one of several groups does not apply to their union.
        context: what is summed.

    Raises:
        GuaranteeError: the sum would hide nobody, or the threshold cannot protect.
    """
    number = len(public_keys)
    size = number if settings.groups == 1 else settings.smallest_group(number)
    threshold = settings.threshold_of(number) if settings.groups == 1 else least_threshold(number, settings.colluding)
    return Parameters(
        context=hashlib.sha256(context.encode()).digest(),
        sites=tuple(public_keys.items()),
        threshold=threshold,
        colluding=settings.colluding,
        min_included=max(threshold, number - settings.groups * settings.dropouts_of(size)),
        chunk_bytes=settings.chunk_bytes,
    )


def _carry(server: ServerSession, sites: Mapping[str, SiteSession], outgoing: Sequence[Outgoing]) -> None:
    """Deliver until nothing is left to deliver."""
    queue = deque(outgoing)
    while queue:
        message = queue.popleft()
        for answer in sites[message.site].receive(message.data):
            queue.extend(server.receive(message.site, answer))
