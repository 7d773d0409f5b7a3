"""What the server verifies before it uses or relays a site's message."""

from collections.abc import Collection as Container

from medveil.errors import AuthenticityError, ProtocolError
from medveil.secagg.collecting import Collection
from medveil.secagg.identity import verify
from medveil.secagg.keys import KeyPair
from medveil.secagg.messages import Advertise, Agree, Prepare, Reveal
from medveil.secagg.parameters import Parameters
from medveil.secagg.records import Kind

# Whether a public key has small order shows with any secret; this one is known to all and hides nothing.
_PROBE = KeyPair(b"\x01" * 32)


def check_advertise(message: Advertise, index: int, parameters: Parameters, digest: bytes) -> None:
    """The site's own, signed over the same parameters, with a usable key.

    Raises:
        AuthenticityError: otherwise.
    """
    advertisement = message.advertisement
    _own(advertisement.index, index)
    _signed(parameters, index, advertisement.signature, advertisement.text(digest), "an advertised key")
    _PROBE.agree(advertisement.key)


def check_prepare(message: Prepare, index: int, parameters: Parameters, session: bytes, roster: Container[int]) -> None:
    """The site's own, signed, with a usable key and a sealed pair for every other site of the roster.

    Raises:
        AuthenticityError: a signature or key is not good.
        ProtocolError: a pair is missing or too many.
    """
    entry = message.entry
    _own(entry.index, index)
    _signed(parameters, index, entry.signature, entry.text(session, message.step), "a mask key")
    _signed(parameters, index, message.signature, message.text(session), "sealed shares")
    _PROBE.agree(entry.key)
    receivers = {sealed.index for sealed in message.sealed}
    if receivers != set(roster) - {index}:
        raise ProtocolError(
            "A site did not seal a pair of shares for each other site",
            got=f"{len(receivers)} pairs of site {index}",
            expected=f"{len(roster) - 1}, one for each other site of the roster",
        )


def check_agree(
    message: Agree, index: int, parameters: Parameters, session: bytes, collection: Collection, survivors: bytes
) -> None:
    """A survivor's own signature under this step's list.

    Raises:
        AuthenticityError, ProtocolError: otherwise.
    """
    _survivor(index, message.step, collection)
    _own(message.agreement.index, index)
    text = message.agreement.text(session, collection.step, survivors)
    _signed(parameters, index, message.agreement.signature, text, "an agreement")


def check_reveal(message: Reveal, index: int, parameters: Parameters, session: bytes, collection: Collection) -> None:
    """A survivor's own shares, once, and of the right kind for each site.

    Raises:
        AuthenticityError, ProtocolError: otherwise.
    """
    _survivor(index, message.step, collection)
    _own(message.index, index)
    if index in collection.revealed:
        raise ProtocolError("A site revealed its shares already", got=f"site {index}", expected="once a step")
    _signed(parameters, index, message.signature, message.text(session, collection.view), "revealed shares")
    for share in message.shares:
        right = Kind.SEED if share.index in collection.receipts else Kind.MASK_KEY
        if share.index not in collection.entries or share.kind is not right:
            raise ProtocolError(
                "A site revealed a share that nobody asked for",
                got=f"site {index}, a share of site {share.index}",
                expected="of each included site its seed, of each dropped one its mask key",
            )


def _survivor(index: int, step: int, collection: Collection) -> None:
    if index not in collection.receipts or step != collection.step:
        raise ProtocolError(
            "This answer is not awaited from this site",
            got=f"site {index}, step {step}",
            expected=f"a site in the sum of step {collection.step}",
        )


def _own(claimed: int, index: int) -> None:
    if claimed != index:
        raise AuthenticityError(
            "A message claims to be another site's", got=f"site {claimed}", expected=f"site {index}, which sent it"
        )


def _signed(parameters: Parameters, index: int, signature: bytes, text: bytes, what: str) -> None:
    if not verify(parameters.key(index), signature, text):
        raise AuthenticityError(
            f"The signature of {what} is not valid",
            got=f"a signature that is not by site {index} over this session and step",
            expected="the site's own signature",
            remedy="its message was changed on the way, or it signs with another key: leave it out",
        )
