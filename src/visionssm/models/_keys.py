"""Two-way tables between the names of tensors in published checkpoints and ours."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Key:
    """One rule: a published name, or several that are stacked into one tensor of ours, and our name.

    In a pattern `*` stands for one dotted part and a final `**` for the rest; both sides use the same wildcards in the
    same order.

    Args:
        published: pattern, or one per slice of our tensor.
        ours: pattern.
        flat: how many of our leading axes are one in the published tensor: flat=2 says that (4, E, N) is published as
            (4 E, N).
        squeeze: the published tensor is ours without its first axis, which has size 1.
        joined: the published tensors lie one after the other along our first axis; else each is an entry of it.
    """

    published: str | tuple[str, ...]
    ours: str
    flat: int = 0
    squeeze: bool = False
    joined: bool = False

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.published,) if isinstance(self.published, str) else self.published

    def matches(self, name: str) -> bool:
        return _pattern(self.ours).fullmatch(name) is not None

    def published_names(self, ours: str) -> list[str]:
        match = _pattern(self.ours).fullmatch(ours)
        assert match is not None
        return [_fill(source, match.groups()) for source in self.sources]

    def to_published(self, value: Tensor) -> list[Tensor]:
        if self.joined:
            parts = list(value.chunk(len(self.sources)))
        else:
            parts = [value] if isinstance(self.published, str) else list(value.unbind(0))
        if self.flat:
            parts = [part.flatten(0, self.flat - 1) for part in parts]
        return [part.squeeze(0) for part in parts] if self.squeeze else parts

    def from_published(self, values: Sequence[Tensor], shape: torch.Size) -> Tensor:
        combine = torch.cat if self.joined else torch.stack
        value = values[0] if isinstance(self.published, str) else combine(list(values))
        return value.reshape(shape) if _same_layout(value.shape, shape) else value


def _same_layout(shape: torch.Size, ours: torch.Size) -> bool:
    """Whether a published shape is ours with axes of size 1 more or less, or with leading axes made one.

    A 1x1 convolution kernel and a linear weight are the same matrix, and so are (4, R, E) and (4 R, E); files of both
    forms exist.
    """
    a, b = ([size for size in s if size != 1] for s in (shape, ours))
    return a == b or any(a == [math.prod(b[:k]), *b[k:]] for k in range(2, len(b) + 1))


@lru_cache(maxsize=4096)
def _pattern(text: str) -> re.Pattern[str]:
    escaped = re.escape(text).replace(r"\*\*", "(.+)").replace(r"\*", "([^.]+)")
    return re.compile(escaped)


def _fill(pattern: str, parts: Sequence[str]) -> str:
    pieces = re.split(r"\*\*|\*", pattern)
    assert len(pieces) == len(parts) + 1, f"{pattern} needs as many wildcards as its counterpart"
    return "".join(piece + part for piece, part in zip(pieces, [*parts, ""], strict=True))


class KeyTable:
    """Renames in both directions by the first rule that matches; what no rule matches keeps its name.

    Args:
        keys: the rules.
        aliases: older published names, `(old pattern, published pattern)`, accepted when reading where the current name
            is absent.

    Example:
        >>> table = KeyTable([Key("layers.*.norm.**", "blocks.*.norm1.**")])
        >>> ours = {"blocks.0.norm1.weight": torch.ones(2), "head.bias": torch.zeros(1)}
        >>> list(table.to_published(ours))
        ['layers.0.norm.weight', 'head.bias']
        >>> list(table.from_published(table.to_published(ours), ours))
        ['blocks.0.norm1.weight', 'head.bias']
    """

    def __init__(self, keys: Sequence[Key], aliases: Sequence[tuple[str, str]] = ()) -> None:
        self.keys = tuple(keys)
        self.aliases = tuple(aliases)

    def _rule(self, ours: str) -> Key:
        return next((key for key in self.keys if key.matches(ours)), Key(ours, ours))

    def published_names(self, ours: str) -> list[str]:
        """Under which name, or names of its parts, one of our tensors is published."""
        return self._rule(ours).published_names(ours)

    def to_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our state dict under published names and in published shapes."""
        published: dict[str, Tensor] = {}
        for name, value in state.items():
            rule = self._rule(name)
            published.update(zip(rule.published_names(name), rule.to_published(value), strict=True))
        return published

    def from_published(self, state: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A published state dict under our names; `ours` is a model's own state dict, for its names and shapes.

        What does not belong to the model keeps its published name, so that strict loading can report it.
        """
        left = dict(state)
        found: dict[str, Tensor] = {}
        for name, own in ours.items():
            rule = self._rule(name)
            sources = [self._present(source, left) for source in rule.published_names(name)]
            if all(source in left for source in sources) and len({left[source].shape for source in sources}) == 1:
                found[name] = rule.from_published([left.pop(source) for source in sources], own.shape)
        return {**found, **left}

    def _present(self, source: str, state: Mapping[str, Tensor]) -> str:
        """The name under which a file holds the tensor that is now published as `source`."""
        if source not in state:
            for old, current in self.aliases:
                match = _pattern(current).fullmatch(source)
                if match and (name := _fill(old, match.groups())) in state:
                    return name
        return source
