"""Fills the ``{names}`` of argv templates in; the one place that knows what a placeholder looks like.

Called by toolchains (tools) and executors (programs). Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


def fill_in(template: Sequence[str], values: Mapping[str, str]) -> tuple[str, ...]:
    """Replace the ``{names}`` that `values` knows; every other brace stays as it is."""
    return tuple(_PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), word) for word in template)
