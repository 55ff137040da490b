"""What `--img-size` means, for every command that has it."""

from collections.abc import Sequence


def image_size(given: Sequence[int] | None) -> tuple[int, int] | None:
    """(height, width) from one number or two; None where nothing was given.

    Raises:
        ValueError: more than two numbers, or one below 1.

    Example:
        >>> image_size([224]), image_size([96, 128]), image_size(None)
        ((224, 224), (96, 128), None)
    """
    if given is None:
        return None
    if len(given) > 2 or min(given) < 1:
        raise ValueError(f"--img-size: got {' '.join(map(str, given))}, need one positive number, or H W")
    return given[0], given[-1]
