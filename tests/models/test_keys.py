"""The tables between published names and ours, for every family that is registered."""

import pytest
import torch

import visionssm
from visionssm.models import export_published, load_published
from visionssm.models._keys import Key, KeyTable

NAMES = visionssm.list_models()
NANO = [name for name in NAMES if name.endswith("_nano")]


def numbered(state):
    """The same names and shapes, with no two numbers alike."""
    start, result = 0, {}
    for name, value in state.items():
        result[name] = torch.arange(start, start + value.numel(), dtype=torch.float64).view(value.shape)
        start += value.numel()
    return result


@pytest.mark.parametrize("name", NANO)
def test_round_trip_keeps_every_number(name):
    model = visionssm.create_model(name)
    state = numbered(model.state_dict())
    published = model.key_table.to_published(state)
    back = model.key_table.from_published(published, state)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())
    assert sum(value.numel() for value in published.values()) == sum(value.numel() for value in state.values())


@pytest.mark.parametrize("name", [n if n in NANO else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_published_names_are_distinct_and_lead_back(name):
    """Without numbers, on the meta device, for every variant."""
    with torch.device("meta"):
        model = visionssm.create_model(name)
    own = model.state_dict()
    published = model.key_table.to_published(own)
    assert sum(value.numel() for value in published.values()) == sum(value.numel() for value in own.values())
    back = model.key_table.from_published(published, own)
    assert {key: value.shape for key, value in back.items()} == {key: value.shape for key, value in own.items()}


@pytest.mark.parametrize("name", NANO)
def test_published_weights_give_the_same_output(name):
    torch.manual_seed(0)
    source = visionssm.create_model(name).eval()
    torch.manual_seed(1)
    target = visionssm.create_model(name).eval()
    load_published(target, export_published(source), target.pretrained_cfg, "the other model")
    image = torch.randn(1, *target.pretrained_cfg["input_size"])
    with torch.inference_mode():
        assert torch.equal(source(image), target(image))


def test_first_matching_rule_counts_and_others_keep_their_names():
    table = KeyTable([Key("a.*.b", "x.*.special"), Key("a.*.**", "x.*.**")])
    ours = {"x.0.special": torch.zeros(1), "x.0.y.z": torch.ones(1), "other": torch.ones(2)}
    published = table.to_published(ours)
    assert list(published) == ["a.0.b", "a.0.y.z", "other"]
    assert table.from_published(published, ours).keys() == ours.keys()
    assert table.published_names("x.3.special") == ["a.3.b"]


def test_several_published_tensors_are_stacked_or_joined():
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    for joined, combined in ((False, torch.stack((a, b))), (True, torch.cat((a, b)))):
        table = KeyTable([Key(("l.*.a", "l.*.b"), "m.*.ab", joined=joined)])
        ours = {"m.5.ab": torch.empty_like(combined)}
        assert torch.equal(table.from_published({"l.5.a": a, "l.5.b": b}, ours)["m.5.ab"], combined)
        back = table.to_published({"m.5.ab": combined})
        assert torch.equal(back["l.5.a"], a)
        assert torch.equal(back["l.5.b"], b)


def test_leading_axes_are_made_one_and_back():
    table = KeyTable([Key("A_logs", "A_log", flat=2)])
    value = torch.randn(4, 6, 3)
    published = table.to_published({"A_log": value})
    assert torch.equal(published["A_logs"], value.view(24, 3))
    assert torch.equal(table.from_published(published, {"A_log": value})["A_log"], value)


def test_axes_of_size_one_may_differ_and_other_shapes_stay_for_the_loader_to_report():
    table = KeyTable([Key("in_proj.weight", "proj.weight")])
    ours = {"proj.weight": torch.empty(6, 4)}
    kernel = torch.randn(6, 4, 1, 1)
    assert torch.equal(table.from_published({"in_proj.weight": kernel}, ours)["proj.weight"], kernel[:, :, 0, 0])
    transposed = torch.randn(4, 6)
    assert table.from_published({"in_proj.weight": transposed}, ours)["proj.weight"].shape == (4, 6)


def test_aliases_are_read_where_the_current_name_is_absent():
    table = KeyTable([Key("new.*.weight", "ours.*.weight")], aliases=[("old.*.weight", "new.*.weight")])
    ours = {"ours.1.weight": torch.empty(2)}
    assert table.from_published({"old.1.weight": torch.ones(2)}, ours).keys() == ours.keys()
    both = table.from_published({"old.1.weight": torch.ones(2), "new.1.weight": torch.zeros(2)}, ours)
    assert torch.equal(both["ours.1.weight"], torch.zeros(2))
    assert "old.1.weight" in both


def test_incomplete_parts_keep_their_published_names():
    table = KeyTable([Key(("l.a", "l.b"), "m.ab")])
    assert table.from_published({"l.a": torch.zeros(2)}, {"m.ab": torch.zeros(2, 2)}).keys() == {"l.a"}
