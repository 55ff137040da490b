"""Reading the reference numbers under tests/parity/data, and comparing with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from visionssm.models._build import load_published
from visionssm.testing.parity import map_errors, read_fixture, relative_error, rule_image, rule_state_dict

DATA = Path(__file__).parent / "parity" / "data"


def fixtures(family: str, *, having: str = "logits", slow: tuple[str, ...] = ()) -> list[Any]:
    """Parameters for pytest: every model fixture of a family that has a key; those with a part of a name in `slow` are
    marked.
    """
    names = [path.stem for path in sorted((DATA / family).glob("*.json")) if having in read_fixture(path)]
    return [pytest.param(n, marks=pytest.mark.slow) if any(part in n for part in slow) else n for n in names]


def fixture(family: str, name: str) -> dict[str, Any]:
    return read_fixture(DATA / family / f"{name}.json")


def operator_vectors(family: str, name: str) -> Any:
    """Float64 arrays of an operator."""
    return np.load(DATA / family / f"{name}.npz")


def load_fixture_weights(
    model, content: dict[str, Any], source: str, extra: dict[str, torch.Tensor] | None = None
) -> None:
    """Loads the weights of a fixture under their published names, strictly."""
    load_published(model, {**rule_state_dict(content), **(extra or {})}, model.pretrained_cfg, source)


def assert_logits(logits: torch.Tensor, content: dict[str, Any], tolerance: float) -> None:
    expected = np.asarray(content["logits"])
    assert relative_error(logits[:, : expected.shape[1]], expected) < tolerance
    norms = logits.double().norm(dim=1)
    assert relative_error(norms, content["logits_l2"]) < tolerance


def assert_maps(maps, expected: list[dict[str, Any]], tolerance: float) -> None:
    assert len(maps) == len(expected)
    for index, (feature, summary) in enumerate(zip(maps, expected, strict=True)):
        errors = map_errors(feature, summary)
        assert max(errors.values()) < tolerance, f"feature {index}: {errors}"


def assert_gradients(model, content: dict[str, Any], tolerance: float, skip: tuple[str, ...] = ()) -> None:
    """Norms of all parameter gradients of sum(logits * R), R the fixtures' random cotangent, under published names."""
    logits = model(rule_image(**content["input"]))
    cotangent = np.random.RandomState(1).standard_normal(tuple(logits.shape)).astype(np.float32)
    (logits * torch.from_numpy(cotangent)).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        published = published_gradients(model, gradients)
    missing = set(content["grads"]) - set(published)
    assert not missing
    wrong = {
        name: (float(published[name].double().norm()), norm)
        for name, norm in content["grads"].items()
        if not any(part in name for part in skip)
        and abs(float(published[name].double().norm()) - norm) > tolerance * max(norm, 1e-12)
    }
    assert not wrong


def published_gradients(model, gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gradients under published names: they are split and renamed as the weights are."""
    return model.key_table.to_published(gradients)
