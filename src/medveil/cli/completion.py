"""``medveil completion``."""

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    Example (bash):
      medveil completion bash > ~/.local/share/bash-completion/completions/medveil
    """  # noqa: D301 - click wants the character itself
    from medveil.cli.main import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click knows no completion for {shell}")
    click.echo(kind(cli, {}, "medveil", "_MEDVEIL_COMPLETE").source())
