"""``medveil connect revoke`` and ``medveil connect renew``: certificates that end, by decision or by date."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medveil.cli.output import print_json

if TYPE_CHECKING:
    from medveil.connect.renewal import Certificate, Renewed

_FOLDER = click.Path(path_type=Path, file_okay=False)
_NEW_LIST = "Copy {path} into startup/ of the running server, every site and every person: each goes by its own list."


@click.command("revoke")
@click.argument("folder", type=_FOLDER)
@click.argument("name")
@click.option("--old", is_flag=True, help="Only the certificates that a renewal replaced.")
def revoke(folder: Path, name: str, old: bool) -> None:
    """Shut a site or user out, at once: its certificates go on the list of revoked ones."""
    from medveil.connect.provision import revoke as shut_out

    path = shut_out(folder, name, old=old)
    click.echo(f"The old certificates of {name} are revoked." if old else f"{name} is revoked.")
    click.echo(_NEW_LIST.format(path=path))


@click.command("renew")
@click.argument("folder", type=_FOLDER)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--within", "days", type=click.IntRange(0), metavar="DAYS", help="Renew all that end within DAYS.")
@click.option("--revoke-old", is_flag=True, help="Accept the old certificate no longer: somebody may have its key.")
@click.option("--readmit", is_flag=True, help="Also for a NAME that was shut out.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
def renew(
    folder: Path, names: tuple[str, ...], days: int | None, revoke_old: bool, readmit: bool, as_json: bool
) -> None:
    """List the certificates of FOLDER's federation, or make new ones, for each NAME or all that end soon.

    The old certificate is accepted until its own end, so that a site goes on until the new one is installed there.

    \b
    Examples:
      medveil connect renew fed
      medveil connect renew fed site-1
      medveil connect renew fed --within 30
    """  # noqa: D301 - click wants the character itself
    from medveil.connect.renewal import certificates
    from medveil.connect.renewal import renew as make

    if names and days is not None:
        raise click.UsageError("Name parties or give --within, not both.")
    if not names and days is None:
        if revoke_old or readmit:
            raise click.UsageError("Name the parties that --revoke-old and --readmit are for.")
        _print_certificates(certificates(folder), as_json=as_json)
        return
    made = make(folder, names, within_days=days, revoke_old=revoke_old, readmit=readmit)
    if not made:
        click.echo(f"No certificate ends within {days} days." if not as_json else "[]")
        return
    _print_renewed(made, folder, as_json=as_json)


def _print_certificates(found: Sequence["Certificate"], *, as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {
                    "name": one.name,
                    "ends": one.ends.isoformat(),
                    "days_left": one.days_left,
                    "stands": one.stands,
                    "in_description": one.listed,
                    "earlier_end": [end.isoformat() for end in one.earlier],
                }
                for one in found
            ]
        )
        return
    for one in found:
        left = f"{one.days_left} days left" if one.stands == "valid" else one.stands
        notes = [] if one.listed else ["not in federation.toml"]
        notes += [f"the one before is accepted until {end:%Y-%m-%d}" for end in one.earlier]
        click.echo(f"{one.name:<24}{one.ends:%Y-%m-%d %H:%M} UTC  {'; '.join([left, *notes])}")


def _print_renewed(made: Sequence["Renewed"], folder: Path, *, as_json: bool) -> None:
    if as_json:
        print_json(
            [
                {
                    "name": one.name,
                    "ends": one.ends.isoformat(),
                    "old_ends": one.old_ends.isoformat(),
                    "old_revoked": one.old_revoked,
                    "files": [str(path) for path in one.files],
                }
                for one in made
            ]
        )
        return
    for one in made:
        ended = "ended on" if one.old_ended else "is accepted until"
        old = "is revoked" if one.old_revoked else f"{ended} {one.old_ends:%Y-%m-%d %H:%M} UTC"
        click.echo(f"{one.name}: a new certificate, until {one.ends:%Y-%m-%d %H:%M} UTC; the old one {old}")
        for path in one.files:
            click.echo(f"  {path}")
    click.echo("Stop each party, copy its files into startup/ of the kit that it runs, start it. A .key is a secret.")
    if any(one.old_revoked for one in made):
        click.echo(_NEW_LIST.format(path=folder / "kits" / "server" / "startup" / "crl.pem"))
