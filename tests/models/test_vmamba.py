"""VMamba against the published model's numbers."""

import pytest
import torch
from parity_data import assert_gradients, assert_logits, assert_maps, fixture, fixtures, load_fixture_weights

import visionssm
from visionssm.testing.parity import rule_image, rule_tensor

SCAN_MODES = {"_bidi": "bidirectional", "_unidi": "unidirectional", "_cascade2d": "cascade"}
TOLERANCE = 2e-5
M2_TOLERANCE = 1e-4  # its published numbers are 1e-5 from float64 themselves


def build(name: str, **options):
    variant = name.rpartition("_")[0]
    for suffix, mode in SCAN_MODES.items():
        if variant.endswith(suffix):
            variant, options["scan_mode"] = variant.removesuffix(suffix), mode
    return visionssm.create_model(variant, out_norms=True, **options).eval()


def load(model, content, name: str) -> None:
    out_norms = {
        f"outnorm{key}": rule_tensor(f"outnorm{key}", tuple(value.shape))
        for key, value in model.out_norms.state_dict().items()
    }
    load_fixture_weights(model, content, name, extra=out_norms)


@pytest.mark.parametrize(
    "name", fixtures("vmamba", slow=("small", "base", "vanilla_vmamba_tiny_256", "vanilla_vmamba_tiny_224"))
)
def test_logits_and_features_match_the_published_model(name):
    content = fixture("vmamba", name)
    model = build(name)
    load(model, content, name)
    assert sum(p.numel() for n, p in model.named_parameters() if not n.startswith("out_norms")) == content["num_params"]
    image = rule_image(**content["input"])
    with torch.inference_mode():
        logits = model(image)
        normalised = model.forward_intermediates(image, intermediates_only=True)
        model.out_norms = None
        raw = model.forward_intermediates(image, intermediates_only=True)
    tolerance = M2_TOLERANCE if "_m2" in name else TOLERANCE
    assert_logits(logits, content, tolerance)
    assert_maps(raw, content["stages"], tolerance)
    assert_maps(normalised, content["stages_outnorm"], tolerance)


@pytest.mark.parametrize("name", fixtures("vmamba", having="grads", slow=("224",)))
def test_gradients_match_the_published_model(name):
    content = fixture("vmamba", name)
    model = build(name)
    load(model, content, name)
    assert_gradients(model, content, tolerance=1e-4)
