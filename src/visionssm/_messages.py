"""Wording that several error messages share."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def near_matches(name: str, choices: Iterable[str], limit: int = 5) -> str:
    """A half-sentence that proposes what the user may have meant, empty when nothing is near.

    Example:
        >>> near_matches("vmamba_tinny", ["vmamba_tiny", "vim_tiny"])
        '; did you mean vmamba_tiny, vim_tiny?'
        >>> near_matches("resnet", ["vmamba_tiny"])
        ''
    """
    near = difflib.get_close_matches(name, list(choices), n=limit, cutoff=0.6)
    return f"; did you mean {', '.join(near)}?" if near else ""


def shortened(text: str, limit: int = 160) -> str:
    """The first line of a text, cut at `limit` characters.

    Example:
        >>> shortened("no such key: 'model'\\ndetails")
        "no such key: 'model'"
    """
    line = text.strip().partition("\n")[0]
    return line if len(line) <= limit else line[: limit - 3] + "..."


def choose(option: str, given: str, choices: Any) -> Any:
    """The entry of `choices` (a mapping, or a sequence of names) that the user gave, or a ValueError that lists
    them.
    """
    if given not in choices:
        raise ValueError(f"{option}: got {given!r}, choose from {', '.join(choices)}")
    return choices[given] if isinstance(choices, Mapping) else given
