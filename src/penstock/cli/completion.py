"""`completion`: prints the script that makes a shell complete commands, options, and names of pipelines."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from penstock.cli.failures import Failure

_INSTRUCTIONS = {
    "bash": "# Load it now:  source <(penstock completion bash)\n# For good: put that line into ~/.bashrc.\n",
    "zsh": "# Load it now:  source <(penstock completion zsh)\n"
    "# For good: put that line into ~/.zshrc, after `autoload -U compinit && compinit`.\n",
    "fish": "# Load it now:  penstock completion fish | source\n"
    "# For good:  penstock completion fish > ~/.config/fish/completions/penstock.fish\n",
}


@click.command()
@click.argument("shell", type=click.Choice(list(_INSTRUCTIONS)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands, options, and names of pipelines; it tells how to load it.

    \b
    source <(penstock completion bash)
    source <(penstock completion zsh)
    penstock completion fish | source
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise Failure(f"nothing is known of {shell}")
    root = ctx.find_root()
    click.echo(kind(root.command, {}, "penstock", "_PENSTOCK_COMPLETE").source() + "\n" + _INSTRUCTIONS[shell])
