"""What is wrong with annotations: counted by kind, listed by place, never silent."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple


class Problem(NamedTuple):
    """One thing that couldn't be used as it is, and what was done about it."""

    where: str  # a file, or an annotation of a file
    kind: str  # what is wrong and what happened: the same words for the same kind, so that kinds can be counted


def summarize_problems(problems: Iterable[Problem]) -> list[str]:
    """One line for each kind of problem: how many, what, and the first place.

    Example:
        >>> zero, missing = "box of zero area: left out", "image file is missing: left out"
        >>> summarize_problems([Problem("annotation 3", zero), Problem("7.jpg", missing), Problem("annotation 9", zero)])
        ['2 x box of zero area: left out (first: annotation 3)', '1 x image file is missing: left out (first: 7.jpg)']
    """
    problems = list(problems)
    first = {problem.kind: problem.where for problem in reversed(problems)}
    counts = Counter(problem.kind for problem in problems)
    return [f"{count} x {kind} (first: {first[kind]})" for kind, count in counts.most_common()]


def problem_lines(problems: Iterable[Problem]) -> list[str]:
    """The lines of the file that lists every problem: the place, a tab, and the kind."""
    return [f"{problem.where}\t{problem.kind}" for problem in problems]
