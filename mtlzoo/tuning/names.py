"""Names that users type, and what is said where one is unknown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def known_name(name: str, known: Iterable[str], what: str) -> str:
    """The name, if it is known.

    Args:
        name: As the user gave it.
        known: The names that there are.
        what: What is named, as in "there is no task 'clik'".

    Raises:
        ValueError: It is unknown; the message lists the known ones.

    Example:
        >>> known_name("click", ["click", "ctcvr"], "task")
        'click'

    Source: our design.
    """
    names = list(known)
    if name in names:
        return name
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"there is no {what} {name!r}{hint} (known: {', '.join(names)})")
