"""docs/models.md is what tools/models_table.py writes for the models of today."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import visionssm
from visionssm.models import all_releases, count_gmacs

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("models_table", ROOT / "tools" / "models_table.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["models_table"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["models_table"]


def rows():
    """The page's tables: name to cells."""
    lines = (ROOT / "docs" / "models.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return {row[0].strip("`"): row for row in cells}


def test_the_page_has_every_release_with_its_facts():
    """Run tools/models_table.py after a change of a release."""
    found = rows()
    assert set(found) == set(all_releases())
    for name, release in all_releases().items():
        _, parameters, size, published, _, _, top1, weights, licence = found[name]
        assert parameters == f"{release.params:,}", name
        assert size.split()[0] == str(release.input_size[1]), name
        assert published == ("-" if release.gflops is None else f"{release.gflops:g}"), name
        assert top1 == ("-" if release.top1 is None else f"{release.top1:.1f}"), name
        assert (release.source in weights) if release.has_weights else ("http" not in weights), name
        assert licence == (release.weights_license if release.has_weights else "-"), name


def test_the_whole_page_is_up_to_date(table):
    assert table.page() == (ROOT / "docs" / "models.md").read_text()


def counts(table, name):
    with torch.device("meta"):
        model = visionssm.create_model(name).eval()
    return table.count(model, model.pretrained_cfg["input_size"]), model


def test_vmambas_rule_gives_the_totals_that_its_authors_print(table):
    """To the last digit."""
    assert table.rule_of("vmamba_tiny").gmacs(counts(table, "vmamba_tiny")[0]) == 4_905_609_984


@pytest.mark.parametrize(
    ("name", "expected", "tolerance"),
    [
        ("vanilla_vmamba_tiny", 5.627, 5e-4),
        ("vim_tiny", 1.525, 5e-4),
        ("local_vim_tiny", 1.48, 5e-3),
        ("simba_small", 2.453, 8e-3),  # without biases
    ],
)
def test_the_rules_of_the_other_authors(name, expected, tolerance, table):
    assert table.rule_of(name).gmacs(counts(table, name)[0]) / 1e9 == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(
    ("name", "products", "attention"), [("mambavision_tiny", 4.565, 0.104), ("mambavision_small", 7.578, 0.096)]
)
def test_mambavisions_rule_leaves_out_attention_products(name, products, attention, table):
    """Known counts of all products and of those of attention, each to the last of three digits."""
    c, _ = counts(table, name)
    assert c.batched / 1e9 == pytest.approx(attention, abs=5e-4)
    assert (table.rule_of(name).gmacs(c) + c.batched) / 1e9 == pytest.approx(products, abs=5e-4)


def test_our_rule_is_the_sum_of_its_parts(table):
    for name in ("mambavision_tiny", "local_vim_tiny"):
        c, model = counts(table, name)
        total = c.convolution + c.linear + c.batched + c.step_projection + c.scan(9, 1)
        assert count_gmacs(model, (224, 224)) == pytest.approx(total / 1e9, rel=1e-12)


def test_a_model_with_another_number_of_parameters_stops_the_script(table):
    from dataclasses import replace

    wrong = replace(all_releases()["vmamba_nano.digits"], params=1)
    with pytest.raises(ValueError, match=r"vmamba_nano has 250,986 parameters, but its release 1"):
        table.row("vmamba_nano", wrong)
