"""What a site verifies before it believes the server."""

from collections.abc import Collection

from medveil.errors import AuthenticityError, TooFewSitesError
from medveil.secagg.identity import verify
from medveil.secagg.messages import Agreed, Begin, Roster, Survivors
from medveil.secagg.parameters import Parameters
from medveil.secagg.records import Advertisement, Entry, Receipt


def check_roster(roster: Roster, parameters: Parameters, digest: bytes, own: Advertisement | None) -> None:
    """Enough known sites, each with a key that it signed itself, and this site's own as it sent it.

    Raises:
        TooFewSitesError, AuthenticityError: otherwise.
    """
    _enough(len(roster.advertisements), parameters.min_included, "in the session")
    if own is None or own not in roster.advertisements:
        raise _contradiction("The roster does not hold this site's own key")
    for one in roster.advertisements:
        _known(one.index, range(1, len(parameters.sites) + 1))
        _signed(parameters, one.index, one.signature, one.text(digest), "an advertised key")


def check_begin(begin: Begin, parameters: Parameters, session: bytes, roster: Collection[int], own: Entry) -> None:
    """Enough sites of the session, each with a mask key and commitment that it signed for this step.

    Raises:
        TooFewSitesError, AuthenticityError: otherwise.
    """
    _enough(len(begin.entries), parameters.min_included, "in the step")
    if own not in begin.entries:
        raise _contradiction("The view does not hold this site's own entry")
    for entry in begin.entries:
        _known(entry.index, roster)
        _signed(parameters, entry.index, entry.signature, entry.text(session, begin.step), "a mask key")
    view = {entry.index for entry in begin.entries}
    for sealed in begin.sealed:
        _known(sealed.index, view - {own.index})


def check_survivors(
    survivors: Survivors, parameters: Parameters, session: bytes, view: Collection[int], own: Receipt
) -> None:
    """Enough sites of this view, each with a receipt that it signed for a vector like this site's own.

    Like it in form, and computed from the same: else a server could give one site weights that draw its data out of
    it and the others weights from which they contribute nothing (https://doi.org/10.1145/3548606.3560557).

    Raises:
        TooFewSitesError, AuthenticityError: otherwise.
    """
    _enough(len(survivors.receipts), parameters.min_included, "in the sum")
    if own not in survivors.receipts:
        raise _contradiction("The survivors do not hold this site's own receipt")
    for receipt in survivors.receipts:
        _known(receipt.index, view)
        if (receipt.step, receipt.view, receipt.bits, receipt.length) != (own.step, own.view, own.bits, own.length):
            raise AuthenticityError(
                "A receipt belongs to another sum",
                got=f"site {receipt.index}, step {receipt.step}, {receipt.length} words of {receipt.bits} bits",
                expected=f"the same view, step {own.step}, {own.length} words of {own.bits} bits",
                remedy="the server mixed two views or steps: do not go on with it",
            )
        if receipt.context != own.context:
            raise AuthenticityError(
                "The sites did not compute their vectors from the same",
                got=f"site {receipt.index}, another context",
                expected="the context of this site's own vector",
                remedy="the server sent the sites different weights or rounds: do not go on with it",
            )
        _signed(parameters, receipt.index, receipt.signature, receipt.text(session), "a receipt")


def check_agreed(
    agreed: Agreed, parameters: Parameters, session: bytes, survivors: Collection[int], survivors_hash: bytes
) -> None:
    """At least a threshold of survivors signed the same list as this site.

    Raises:
        TooFewSitesError, AuthenticityError: otherwise.
    """
    _enough(len(agreed.agreements), parameters.threshold, "that agree")
    for one in agreed.agreements:
        _known(one.index, survivors)
        _signed(parameters, one.index, one.signature, one.text(session, agreed.step, survivors_hash), "an agreement")


def _enough(number: int, least: int, where: str) -> None:
    if number < least:
        raise TooFewSitesError(
            f"Too few sites {where}",
            got=number,
            expected=f"at least {least}",
            remedy="nothing was opened; start again when more sites are there",
        )


def _known(index: int, allowed: Collection[int]) -> None:
    if index not in allowed:
        raise _contradiction(f"Site {index} does not belong here")


def _signed(parameters: Parameters, index: int, signature: bytes, text: bytes, what: str) -> None:
    if not verify(parameters.key(index), signature, text):
        raise AuthenticityError(
            f"The signature of {what} is not valid",
            got=f"a signature that is not by site {index} over this session and step",
            expected="the site's own signature",
            remedy="the server or a third party changed it: do not go on with it",
        )


def _contradiction(what: str) -> AuthenticityError:
    return AuthenticityError(
        what, expected="a list that agrees with what this site knows", remedy="do not go on with this server"
    )
