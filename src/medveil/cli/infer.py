"""``medveil infer``."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from medveil.cli.output import Watcher, print_json

_Command = TypeVar("_Command", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)


def _identity(command: _Command) -> _Command:
    """Who a party is, and whom it trusts."""
    options = (
        click.option("--authority", required=True, type=_FILE, help="The authority's certificate."),
        click.option("--certificate", required=True, type=_FILE, help="This party's certificate."),
        click.option("--key", required=True, type=_FILE, help="This party's key."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _reveal(command: _Command) -> _Command:
    """How much of the answer is shown."""
    options = (
        click.option(
            "--reveal",
            type=click.Choice(["logits", "probabilities", "label"]),
            default="logits",
            show_default=True,
            help="What a hospital learns; label is the mask of a segmentation.",
        ),
        click.option(
            "--levels",
            type=click.IntRange(2, 1000),
            default=20,
            show_default=True,
            help="Steps into which probabilities are rounded.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _known(options: dict[str, Any]) -> Any:
    from medveil.encrypted.wire.connect import Identity

    return Identity(options["authority"], options["certificate"], options["key"])


def _say(content: dict[str, Any]) -> None:
    """Ports and refusals, a line each, at once."""
    click.echo(json.dumps(content), err="refused" in content)


@click.group("infer")
def command() -> None:
    """Diagnose encrypted images: neither the image nor the model is shown."""


@command.command("dealer")
@click.option("--folder", required=True, type=_FOLDER, help="Keeps the hospitals' parts until they are fetched.")
@click.option("--vendors", required=True, metavar="HOST:PORT", help="Where vendors connect; port 0 takes a free one.")
@click.option("--hospitals", required=True, metavar="HOST:PORT", help="Where hospitals connect.")
@click.option("--times", type=click.IntRange(min=1), help="Vendors and hospitals to serve; no end by default.")
@_identity
def dealer(folder: Path, vendors: str, hospitals: str, times: int | None, **options: Any) -> None:
    """Deal correlated random numbers, ahead of any image.

    \b
    Example:
      medveil infer dealer --folder dealt --vendors 0.0.0.0:7001 --hospitals 0.0.0.0:7002 \\
        --authority keys/authority.pem --certificate keys/dealer.pem --key keys/dealer-key.pem
    """  # noqa: D301 - click wants the character itself
    from medveil.encrypted.wire.connect import address
    from medveil.study.diagnosis_parties import run_dealer

    run_dealer(_known(options), folder, vendors=address(vendors), hospitals=address(hospitals), times=times, say=_say)


@command.command("vendor")
@click.option("--model", "run", required=True, type=_FOLDER, help="Folder of a finished run.")
@click.option("--store", required=True, type=_FOLDER, help="Correlations; fetched from the dealer if there are none.")
@click.option("--dealer", required=True, metavar="HOST:PORT", help="Where the dealer listens to vendors.")
@click.option("--listen", required=True, metavar="HOST:PORT", help="Where hospitals connect; port 0 takes a free one.")
@click.option("--count", type=click.IntRange(min=1), default=1, show_default=True, help="Diagnoses to have dealt.")
@click.option("--times", type=click.IntRange(min=1), help="Sessions to serve; without end by default.")
@click.option("--hospital", default="", metavar="NAME", help="Name on the only hospital's certificate; any by default.")
@_reveal
@click.option(
    "--reveal-bits",
    type=click.IntRange(0, 16),
    default=16,
    show_default=True,
    help="Fraction bits of logits.",
)
@_identity
def vendor(run: Path, store: Path, dealer: str, listen: str, **options: Any) -> None:
    """Serve the model of a finished run.

    \b
    Example:
      medveil infer vendor --model runs/p28 --store correlations --dealer dealer:7001 --listen 0.0.0.0:7003 \\
        --authority keys/authority.pem --certificate keys/vendor.pem --key keys/vendor-key.pem
    """  # noqa: D301 - click wants the character itself
    from medveil.encrypted.wire.connect import address
    from medveil.study.diagnosis_parties import run_vendor

    run_vendor(
        _known(options),
        run,
        store,
        dealer=address(dealer),
        at=address(listen),
        count=options["count"],
        times=options["times"],
        say=_say,
        reveal=options["reveal"],
        reveal_bits=options["reveal_bits"],
        levels=options["levels"],
        hospital=options["hospital"],
    )


@command.command("hospital")
@click.option("--vendor", required=True, metavar="HOST:PORT", help="Where the vendor listens.")
@click.option("--store", required=True, type=_FOLDER, help="This hospital's correlations.")
@click.option("--dealer", metavar="HOST:PORT", help="Where the dealer listens to hospitals; for --prepare.")
@click.option("--prepare", is_flag=True, help="Fetch correlations for what the vendor offers, and end.")
@click.option("--image", type=click.Path(path_type=Path, dir_okay=False), help="DICOM, NIfTI, PNG or JPEG.")
@click.option("--slice", "position", type=click.IntRange(min=0), help="Of a volume; the middle one by default.")
@_identity
def hospital(
    *,
    vendor: str,
    store: Path,
    dealer: str | None,
    prepare: bool,
    image: Path | None,
    position: int | None,
    **options: Any,
) -> None:
    """Fetch correlations (--prepare), or have one image diagnosed (--image).

    \b
    Example:
      medveil infer hospital --vendor vendor:7003 --store correlations --image scan.dcm \\
        --authority keys/authority.pem --certificate keys/hospital.pem --key keys/hospital-key.pem
    """  # noqa: D301 - click wants the character itself
    if prepare == (image is not None) or (prepare and dealer is None):
        raise click.UsageError("give either --prepare with --dealer, or --image")
    from medveil.encrypted.wire.connect import address
    from medveil.study.diagnosis_parties import diagnose, prepare_hospital

    if image is None:
        assert dealer is not None
        content = prepare_hospital(_known(options), store, vendor=address(vendor), dealer=address(dealer))
    else:
        note = Watcher(quiet=False).note
        content = diagnose(_known(options), store, image, vendor=address(vendor), position=position, note=note)
    _print(content, as_json=options["as_json"])


@command.command("local")
@click.option("--model", "run", required=True, type=_FOLDER, help="Folder of a finished run.")
@click.option("--image", required=True, type=_FILE, help="DICOM, NIfTI, PNG or JPEG.")
@click.option("--slice", "position", type=click.IntRange(min=0), help="Of a volume; the middle one by default.")
@_reveal
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def local(
    *, run: Path, image: Path, position: int | None, reveal: Any, levels: int, as_json: bool, quiet: bool
) -> None:
    """Dealer, vendor and hospital as three processes of this machine.

    \b
    Example:
      medveil infer local --model runs/p28 --image scan.png
    """  # noqa: D301 - click wants the character itself
    from medveil.study.diagnosis_parties import local as run_local

    note = Watcher(quiet=quiet).note
    _print(run_local(run, image, position=position, reveal=reveal, levels=levels, note=note), as_json=as_json)


def _print(content: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(content)
        return
    for line in _lines(content):
        click.echo(line)


def _lines(content: dict[str, Any]) -> list[str]:
    if "run" in content:
        return [f"Prepared for run {content['run']}"]
    if "label" in content:
        lines = [f"Label: {content['label']}"]
        lines += [f"  {name:<20}{probability:.4f}" for name, probability in content.get("probabilities", {}).items()]
    else:
        lines = ["Pixels: " + ", ".join(f"{name} {count}" for name, count in content["pixels"].items())]
    if "plaintext_max_error" in content:
        same = "the same" if content["plaintext_agrees"] else "ANOTHER"
        error = content["plaintext_max_error"]
        differs = "" if error is None else f", largest difference {error:.1e}"
        lines.append(f"Plain network: {same} answer{differs}")
    spent = f"{content['bytes_online']:,} bytes, {content['messages']} messages, {content['seconds_online']:.2f} s"
    lines.append(f"Online: {spent}")
    if "seconds_offline" in content:
        lines.append(f"Ahead: {content['seconds_offline']:.1f} s, starting, compiling and dealing included")
    for who in ("hospital", "vendor", "dealer"):
        lines.append(f"The {who} learns: {'; '.join(content['leakage'][f'{who}_learns'])}")
    return lines
