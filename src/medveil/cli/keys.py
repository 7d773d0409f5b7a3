"""``medveil keys``."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

if TYPE_CHECKING:
    from medveil.encrypted.wire.certificates import Role


@click.group("keys")
def command() -> None:
    """Make the certificates by which dealer, vendor and hospital know each other."""


@command.command("authority")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for both files.")
def authority(out: Path) -> None:
    """Make an authority, whose certificate every party trusts. Keep its key away from all of them.

    \b
    Example:
      medveil keys authority --out keys
    """  # noqa: D301 - click wants the character itself
    from medveil.encrypted.wire.certificates import make_authority

    pair = make_authority(out)
    click.echo(f"Certificate: {pair.certificate}\nKey: {pair.key}")


@command.command("certificate")
@click.option(
    "--authority",
    "folder",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the authority.",
)
@click.option("--role", required=True, type=click.Choice(["hospital", "vendor", "dealer"]), help="Of the party.")
@click.option("--name", required=True, help="Of the party; written into the certificate.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder for both files.")
def certificate(folder: Path, role: str, name: str, out: Path) -> None:
    """Make a party's key and certificate, signed by an authority.

    \b
    Example:
      medveil keys certificate --authority keys --role hospital --name north --out keys
    """  # noqa: D301 - click wants the character itself
    from medveil.encrypted.wire.certificates import KeyPair, make_certificate

    pair = KeyPair(folder / "authority.pem", folder / "authority-key.pem")
    made = make_certificate(out, authority=pair, role=cast("Role", role), name=name)
    click.echo(f"Certificate: {made.certificate}\nKey: {made.key}")
