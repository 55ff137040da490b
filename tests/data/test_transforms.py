import numpy as np
import pytest
import timm
import torch
from PIL import Image

from visionssm.data import Preprocessing, eval_transform, load_digits, train_transform

GREY = Preprocessing((1, 32, 32), "bicubic", (0.5,), (0.25,), crop_pct=1.0, crop_mode="center")
COLOUR = Preprocessing((3, 32, 32), "bicubic", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), crop_pct=1.0, crop_mode="center")
MILD = {"scale": (0.7, 1.0), "ratio": (0.75, 1.33), "hflip": 0.0, "color_jitter": 0.0, "auto_augment": None}


def test_a_digit_is_enlarged_bicubically_and_normalised() -> None:
    image = load_digits().train.load(0)
    enlarged = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    expected = torch.from_numpy((enlarged - 0.5) / 0.25)
    assert torch.allclose(eval_transform(GREY)(image), expected[None])
    assert torch.allclose(eval_transform(COLOUR)(image), expected.expand(3, 32, 32))


def test_colours_become_grey_for_a_model_with_one_channel() -> None:
    image = Image.new("RGB", (40, 32), (255, 0, 0))
    assert eval_transform(GREY)(image).shape == (1, 32, 32)


def test_greys_of_16_bits_keep_their_shades() -> None:
    pixels = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    expected = torch.from_numpy(((pixels >> 8).astype(np.float32) / 255 - 0.5) / 0.25)
    assert torch.allclose(eval_transform(GREY)(Image.fromarray(pixels))[0], expected, atol=1e-6)


def test_the_models_own_configuration_is_taken_and_adapted_to_its_channels() -> None:
    model = timm.create_model("test_vit")
    own = Preprocessing.of_model(model)
    assert own.input_size == (3, 160, 160)
    grey = Preprocessing.of_model(model, input_size=(1, 32, 48), crop_pct=1.0)
    assert grey.input_size == (1, 32, 48)
    assert grey.mean == (pytest.approx(sum(own.mean) / 3),)
    assert Preprocessing.from_dict(grey.to_dict()) == grey


def test_random_transforms_differ_and_have_the_models_size() -> None:
    image = load_digits().train.load(0)
    transform = train_transform(GREY, random_erasing=0.5, **MILD)
    first, second = transform(image), transform(image)
    assert first.shape == second.shape == (1, 32, 32)
    assert not torch.equal(first, second)


def test_what_cannot_be_done_to_grey_images_is_refused() -> None:
    with pytest.raises(ValueError, match="auto_augment=rand-m9 needs colour images"):
        train_transform(GREY, random_erasing=0.0, **{**MILD, "auto_augment": "rand-m9"})
    with pytest.raises(ValueError, match="1 or 3 channels"):
        eval_transform(Preprocessing((4, 8, 8), "bicubic", (0.5,) * 4, (0.5,) * 4, 1.0, "center"))
