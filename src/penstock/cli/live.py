"""Draws lines on a terminal again and again, until told to end; nothing of them is left then.

Used by `waiting.py` when something takes longer, since to load what draws takes a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.live import Live
from rich.text import Text

from penstock.cli.output import Cell

_STYLES = {"good": "green", "bad": "red", "busy": "yellow", "calm": "cyan", "dim": "dim", "bold": "bold"}

_CTRL_C = 2
"""Columns left free for the ``^C`` that a terminal echoes: on a full line it would begin another, never erased."""


def draw(lines: Callable[[int], Sequence[Cell]]) -> Callable[[], None]:
    """Draw on stderr, several times a second, what `lines` returns for a width; returns what ends it.

    `lines` is called from a thread of its own.
    """
    console = Console(stderr=True, highlight=False)

    def drawn() -> Text:
        columns = max(1, console.width - _CTRL_C)
        shown = [Text.assemble(*((text, _STYLES.get(look, "")) for text, look in each)) for each in lines(columns)]
        for line in shown:
            line.truncate(columns, overflow="ellipsis")
        return Text("\n", no_wrap=True).join(shown)

    live = Live(
        console=console,
        get_renderable=drawn,
        refresh_per_second=8,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    live.start()
    console.show_cursor(True)  # whoever is killed could not show it again
    return live.stop
