"""The evaluation transform beside timm's own: equal pixels for models as timm evaluates them."""

import io

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform

from data.augment.transforms import EvalTransform
from data.decode.image import decode
from models import registry
from models.card import Card, Preprocessing


def jpeg(height: int, width: int) -> bytes:
    """A photograph-like picture: smooth colours with fine noise."""
    draw = np.random.default_rng(height)
    coarse = Image.fromarray(draw.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    noise = draw.integers(-20, 20, (height, width, 3))
    pixels = np.clip(np.asarray(coarse).astype(int) + noise, 0, 255).astype(np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "JPEG", quality=92)
        return file.getvalue()


@pytest.mark.parametrize("model", ["resnet18", "tf_efficientnet_lite0", "vit_tiny_patch16_224", "convnext_atto"])
@pytest.mark.parametrize("sides", [(375, 500), (1200, 901), (224, 224), (100, 70)])
def test_evaluation_makes_the_pixels_that_timm_makes(model: str, sides: tuple[int, int]) -> None:
    data, prep = jpeg(*sides), registry.get(model).preprocessing
    theirs = create_transform(
        (3, prep.size, prep.size),
        interpolation=prep.interpolation,
        crop_pct=prep.crop_pct,
        crop_mode="squash" if prep.fit == "squash" else "center",
        normalize=False,  # uint8
    )(Image.open(io.BytesIO(data)))
    own = EvalTransform(prep)
    assert np.array_equal(own(decode(data, shrink=own.shrink)), theirs.numpy().transpose(1, 2, 0))


def test_an_older_card_keeps_its_meaning() -> None:
    card = Card("resnet18", ("a", "b"), Preprocessing(32))
    assert "resampling" not in card.to_json()
    assert Card.from_json(card.to_json(), "card") == card
    now = Card("resnet18", ("a", "b"), registry.get("resnet18").preprocessing)
    assert Card.from_json(now.to_json(), "card").preprocessing.resampling == "pillow"
