"""Secure aggregation: a server learns the sum of the sites' vectors and nothing else about any of them."""

from medveil.secagg.identity import IdentityKey, verify
from medveil.secagg.opening import Opened
from medveil.secagg.parameters import Parameters, least_threshold
from medveil.secagg.server import Outgoing, ServerSession
from medveil.secagg.site import SiteSession

__all__ = [
    "IdentityKey",
    "Opened",
    "Outgoing",
    "Parameters",
    "ServerSession",
    "SiteSession",
    "least_threshold",
    "verify",
]
