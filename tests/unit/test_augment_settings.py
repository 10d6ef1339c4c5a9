"""`augment.ops`: what is read and refused, and that each probability and each limit acts."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from config import load
from config.errors import ConfigError
from config.sections.augment import OPERATIONS, Augment
from data.augment import transforms
from models.card import Preprocessing
from tests.unit.pictures import chance, difference, photograph
from training.campaign import trial

IMAGE = cv2.resize(photograph(40, 40), (160, 160))  # smooth, so that a good JPEG is near it
PREP = Preprocessing(size=160)
PLAIN = transforms.EvalTransform(PREP)(IMAGE)
LIMITS = [(name, key) for name, operation in OPERATIONS.items() for key in operation.parameters]


def change(count: int = 24, **ops) -> float:
    """The mean difference that operations make, with no level."""
    transform = transforms.train_transform(Augment(level="none", ops=ops), PREP)
    return float(np.mean([difference(transform(IMAGE, chance(i)), PLAIN).mean() for i in range(count)]))


def ops_of(*words: str) -> dict:
    return load.parse(["--data.root", "x", *words], "train").augment.ops


def test_the_settings_and_the_functions_have_the_same_operations_and_parameters() -> None:
    assert {n: list(operation.parameters) for n, operation in OPERATIONS.items()} == {
        n: list(transforms.limits(n)) for n in OPERATIONS
    }
    assert set(OPERATIONS) == set(transforms.STANDARD)
    for name, key in LIMITS:
        parameter = OPERATIONS[name].parameters[key]
        assert parameter.minimum <= transforms.limits(name)[key] <= parameter.maximum


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_of_probability_0_never_acts_and_of_1_on_each_image(name) -> None:
    assert change(**{name: {"prob": 0}}) == 0
    alone = transforms.train_transform(Augment(level="none", ops={name: {"prob": 1}}), PREP)
    assert alone.acts[name].probability == 1
    acted = [(alone(IMAGE, chance(i)) != PLAIN).any() for i in range(40)]
    seldom = transforms.train_transform(Augment(level="none", ops={name: {"prob": 0.4}}), PREP)
    often = [(seldom(IMAGE, chance(i)) != PLAIN).any() for i in range(40)]
    assert np.mean(acted) >= 0.6  # a weak draw changes no pixel
    assert 0 < np.mean(often) < np.mean(acted)


@pytest.mark.parametrize(("name", "key"), LIMITS)
def test_a_wider_limit_changes_more_and_a_neutral_one_nothing(name, key) -> None:
    standard = transforms.limits(name)[key]
    neutral = {"bits": 8, "threshold": 256, "quality": 95}.get(key, 0)
    others = dict.fromkeys(set(transforms.limits(name)) - {key}, 0)  # of affine
    some = [{"prob": 1, **others, key: neutral + part * (standard - neutral)} for part in (0, 0.4, 1)]
    none, mild, strong = (change(**{name: one}) for one in some)
    assert none < mild < strong and (none < 2 or name == "jpeg")  # hue rounds, and quality 95 is no copy


@pytest.mark.parametrize("level", ["none", "moderate", "hard"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_true_is_the_levels_strength_or_the_standard_one_and_its_limits_written_out_give_the_same_pixels(
    level, name
) -> None:
    act = transforms.LEVELS[level].operations.get(name, transforms.STANDARD[name])
    asked = transforms.train_transform(Augment(level=level, ops={name: True}), PREP)
    assert asked.acts[name] == act
    if act.strength == 1:
        written = Augment(level=level, ops={name: {"prob": act.probability, **transforms.limits(name)}})
        for i in range(6):
            np.testing.assert_array_equal(
                transforms.train_transform(written, PREP)(IMAGE, chance(i)), asked(IMAGE, chance(i))
            )


def test_what_is_not_written_stays_as_the_level_has_it() -> None:
    words = ("--augment.level", "hard", "--augment.ops", "{affine: {degrees: 10}, brightness: {prob: 0.2}, hue: null}")
    section = load.parse(["--data.root", "x", *words], "train").augment
    acts = transforms.train_transform(section, PREP).acts
    hard = transforms.LEVELS["hard"].operations
    assert acts["affine"].probability == hard["affine"].probability and acts["affine"].strength == 1
    assert acts["affine"].limits == pytest.approx({"degrees": 10, "shear": 12, "scale": 0.2, "translate": 0.12})
    assert acts["brightness"] == hard["brightness"]._replace(probability=0.2)
    assert acts["hue"] == hard["hue"]


def test_a_ramp_scales_a_written_limit() -> None:
    act = transforms.train_transform(Augment(ops={"rotate": {"degrees": 20}}), PREP, 0.25).acts["rotate"]
    assert (act.probability, act.strength, act.limits) == (0.5, 0.25, {"degrees": 20})


def test_the_command_line_goes_over_a_recipe_operation_by_operation_and_all_is_written_and_read(tmp_path: Path) -> None:
    words = ("--config", "documents", "--augment.ops", "{rotate: {prob: 0.5, degrees: 15}, hue: null, shadow: off}")
    ops = ops_of(*words)
    assert ops["rotate"] == {"prob": 0.5, "degrees": 15.0} and "hue" not in ops and ops["shadow"] is False
    assert ops["erosion"] is True and ops["random_erasing"] is False
    (tmp_path / "again.yaml").write_text(load.to_yaml(load.parse(["--data.root", "x", *words], "train")))
    assert load.read(tmp_path / "again.yaml").augment.ops == ops


@pytest.mark.parametrize(
    ("ops", "said"),
    [
        ("{rotat: true}", "found {rotat: true} (command line); expected an operation in place of rotat; did you mean"
         " rotate? there are rotate90, bleed_through, erosion"),
        ("{rotate: {degress: 5}}", "found {rotate: {degress: 5}} (command line); expected a parameter of rotate in"
         " place of degress; did you mean degrees? there are prob, degrees"),
        ("{rotate: {degrees: 181}}", "expected rotate.degrees from 0 to 180 (either way)"),
        ("{hue: {prob: 1.5}}", "expected hue.prob from 0 to 1 (probability"),
        ("{hue: {limit: nan}}", "expected hue.limit from 0 to 0.5"),
        ("{gaussian_blur: {sigma: wide}}", "expected gaussian_blur.sigma from 0 to 0.1 (share of the short side)"),
        ("{shear: 0.5}", "expected shear with true, false, null or {prob: ..., degrees: ...}"),
        ("rotate", "found 'rotate' (command line); expected a mapping"),
    ],
)  # fmt: skip
def test_a_wrong_operation_is_one_line_with_what_there_is(ops, said) -> None:
    with pytest.raises(ConfigError) as error:
        ops_of("--config", "documents", "--augment.ops", ops)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_wrong_operation_of_a_file_is_named_with_its_place_below_a_command_line_with_others(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("augment:\n  ops:\n    blurr: true\n")
    with pytest.raises(ConfigError, match=r"^augment\.ops: found {blurr: true} \(.*mine\.yaml, line 2\)"):
        ops_of("--config", str(file), "--augment.ops", "{hue: false}")


def test_a_search_may_try_an_operation() -> None:
    settings = load.parse(["--data.root", "x", "--config", "documents"], "train")
    tried = trial.applied(settings, {"augment.ops.rotate": "false"})
    assert tried.augment.ops == {**settings.augment.ops, "rotate": False}
    with pytest.raises(ConfigError, match=r"augment\.ops: found {rotat: true} \(tune\.space\).*did you mean rotate"):
        trial.applied(settings, {"augment.ops.rotat": "true"})


# Probability and strength of the recipes' operations when they were written with a switch for each block.
RECIPES = {
    "documents": {
        "rotate90": (1.0, 1.0),
        "bleed_through": (0.2, 1.0),
        "erosion": (0.1, 0.7),
        "dilation": (0.1, 0.7),
        "shadow": (0.15, 0.8),
        "affine": (0.7, 0.8),
        "rotate": (0.5, 1.0),
        "perspective": (0.2, 0.7),
        "brightness": (0.5, 1.0),
        "contrast": (0.5, 1.0),
        "saturation": (0.5, 1.0),
        "gamma": (0.3, 0.8),
        "posterize": (0.1, 0.8),
        "gaussian_blur": (0.2, 1.0),
        "gaussian_noise": (0.2, 0.8),
        "jpeg": (0.2, 0.8),
    },
    "modern_finetune": {"random_erasing": (0.1, 0.5), "hflip": (0.5, 1.0)},
    "swin_base_384_5fold": {
        "affine": (0.5, 0.4),
        "rotate": (0.5, 1.0),
        "brightness": (0.5, 0.5),
        "contrast": (0.5, 0.5),
        "saturation": (0.5, 0.5),
        "hue": (0.3, 0.5),
        "random_erasing": (0.1, 0.5),
        "hflip": (0.5, 1.0),
    },
    "efficientnet_b4_320_documents": {"affine": (1.0, 0.35)},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_recipes_act_as_they_did_with_switches(recipe) -> None:
    section = load.parse(["--data.root", "x", "--config", recipe], "train").augment
    acts = transforms.train_transform(section, PREP).acts
    assert {name: (act.probability, act.strength) for name, act in acts.items()} == RECIPES[recipe]
    assert not any(act.limits for act in acts.values())


def test_the_docs_list_the_operations_and_the_levels_with_their_numbers() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference" / "augmentation.md").read_text(encoding="utf-8")
    for name, (about, parameters, *_) in OPERATIONS.items():
        limits, act = transforms.limits(name), transforms.STANDARD[name]
        cells = [
            f"`{key}` {limits[key]:.3g} ({p.minimum:.3g} to {p.maximum:.3g}): {p.description}"
            for key, p in parameters.items()
        ]
        strength = f"{act.strength:.3g}" if parameters else "-"
        row = f"| `{name}` | {about} | {'; '.join(cells) or 'none'} | {act.probability:.3g} | {strength} |"
        assert row in text
        of_levels = [transforms.LEVELS[level].operations.get(name) for level in ("minimal", "moderate", "hard")]
        row = " | ".join(f"{a.probability:.3g}, {a.strength:.3g}" if a else "-" for a in of_levels)
        assert f"| `{name}` | {row} |" in text or not any(of_levels)


def test_null_is_as_if_nothing_was_written_so_that_a_run_is_not_told_that_its_settings_differ() -> None:
    written = load.parse(["--data.root", "x", "--augment.ops", "{hue: null, jpeg: null}"], "train")
    assert written == load.parse(["--data.root", "x"], "train")
