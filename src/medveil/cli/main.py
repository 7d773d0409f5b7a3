"""``medveil``: the group of verbs. Each verb's module is imported only when it is called."""

import importlib
import sys
from collections.abc import Sequence
from typing import Final

import click

from medveil import __version__
from medveil.errors import MedveilError

VERBS: Final = {
    "train": "Train the model of a plan over its sites, compare, score and record it.",
    "evaluate": "Score a finished run's model on data that the run never saw.",
    "report": "Make the HTML report of a finished run.",
    "data": "List, check and download data sets.",
    "study": "Train plans at several epsilons and seeds; table and figure of what they reach.",
    "attack": "Attack a finished run with and without its protection: what it leaks.",
    "audit": "Measure whether the private step does what the plan claims; evidence, not proof.",
    "budget": "Set privacy caps, show what is spent, verify and export the ledger.",
    "connect": "Run plans between hospitals over a network, every site in control.",
    "infer": "Diagnose encrypted images: neither the image nor the model is shown.",
    "keys": "Make the certificates by which dealer, vendor and hospital know each other.",
    "doctor": "Check this machine and installation.",
    "completion": "Print shell completion for bash, zsh or fish.",
}

EXIT_CODES: Final = """\b
Exit codes:
  0  done
  1  an unexpected failure
  2  a plan, a data file or an option is wrong
  3  data cannot be used
  4  a model cannot be built or used
  5  sites and coordinator could not work together
  6  a run folder cannot be used
  7  a privacy promise cannot be made or kept
  130  interrupted; run the same command again to go on
"""


class LazyGroup(click.Group):
    """A group that knows its verbs' help without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs in the order of a first use."""
        del ctx
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module."""
        del ctx
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"medveil.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them."""
        del ctx
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=LazyGroup, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="medveil")
def cli() -> None:
    """Hospitals train a medical-imaging model together and know what it leaks."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the code of the error, if any."""
    try:
        cli.main(args=list(arguments) if arguments is not None else None, prog_name="medveil", standalone_mode=False)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.Abort:
        click.echo("Interrupted. Run the same command again to go on.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except MedveilError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
