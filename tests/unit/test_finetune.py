"""What differs on few images: BatchNorm's statistics of enlarged images, and the classifier that a probe gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from backends.contract import is_buffer
from config import load
from config.errors import Interrupted
from config.schema import Settings
from models.weights import loading
from tests import tiny
from tests.contract.cases import batch, session
from tests.unit.test_campaign import NEVER, StopAfter, final
from tests.unit.test_weights import state_of
from training.policy import finetune
from training.run import train_run


def cloud(classes: int, each: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Features of different scales, and labels."""
    draw, labels = np.random.default_rng(0), np.repeat(np.arange(classes), each)
    centres = draw.normal(size=(classes, 20))
    features = (centres[labels] + draw.normal(size=(len(labels), 20))) * np.linspace(0.1, 9, 20)
    return features.astype(np.float32), labels


@pytest.mark.parametrize("classes", [2, 5])
def test_a_probe_is_scikit_learns_regression_on_standardised_features(classes: int) -> None:
    features, labels = cloud(classes)
    found = finetune.probe(features, labels, classes, seed=0)
    assert found is not None
    model = make_pipeline(StandardScaler(), LogisticRegression(C=found.strength, max_iter=1000)).fit(features, labels)
    got = softmax(features @ found.weight.T + found.bias, axis=1)
    np.testing.assert_allclose(got, model.predict_proba(features), atol=1e-3)


def test_features_of_two_engines_give_the_same_classifier() -> None:
    draw, labels = np.random.default_rng(0), np.arange(300) % 5
    mixing = draw.normal(size=(40, 200)) * np.geomspace(1, 0.01, 40)[:, None]  # correlated, as those of a network
    centres = draw.normal(size=(5, 40))
    features = np.maximum((draw.normal(size=(300, 40)) + centres[labels]) @ mixing, 0).astype(np.float32)
    rounded = features * (1 + 1e-6 * np.random.default_rng(9).normal(size=features.shape)).astype(np.float32)
    here, there = (finetune.probe(each, labels, 5, seed=0) for each in (features, rounded))
    assert here is not None and there is not None
    np.testing.assert_allclose(here.weight, there.weight, atol=1e-5 * np.abs(here.weight).max())


def test_a_class_without_images_is_the_least_likely_and_a_single_image_is_learnt() -> None:
    features, labels = cloud(4)
    kept = (labels != 2) & ((labels != 3) | (np.arange(len(labels)) == 40))
    found = finetune.probe(features[kept], labels[kept], 4, seed=0)
    assert found is not None
    logits = features[kept] @ found.weight.T + found.bias
    assert (logits.argmax(axis=1) == labels[kept]).all()
    assert (logits[:, 2] < logits.max(axis=1)).all()


def test_one_class_has_no_probe() -> None:
    features, labels = cloud(2)
    assert finetune.probe(features[labels == 0], labels[labels == 0], 2, seed=0) is None


def test_the_strength_is_chosen_on_images_that_the_regression_did_not_see() -> None:
    features, labels = np.random.default_rng(0).normal(size=(60, 200)).astype(np.float32), np.arange(60) % 2
    noise = finetune.probe(features, labels, 2, seed=0)  # fitted on themselves they cost next to nothing
    signal = finetune.probe(features + 3 * labels[:, None].astype(np.float32), labels, 2, seed=0)
    assert noise is not None and signal is not None
    assert noise.strength < signal.strength


ENLARGED = ("--data.image_size", "64")  # the digits have 32 pixels


def settings(root: Path, out: Path, *more: str) -> Settings:
    words = ["--data.root", str(root), "--out", str(out), "--model", "test_resnet", "--data.image_size", "32"]
    words += ["--train.epochs", "2", "--data.workers", "1", "--data.audit", "false", "--train.batch_size", "16"]
    return load.parse([*words, *more], prog="test")


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    save_file({n: np.asarray(v, np.float32) for n, v in state_of("test_resnet").items()}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


@pytest.mark.parametrize(
    ("more", "probed", "kept"),
    [
        ((), False, False),
        (ENLARGED, True, True),
        ((*ENLARGED, "--optim.batch_norm", "batch"), False, False),
        (("--optim.batch_norm", "fixed", "--optim.head_init", "random"), False, True),
        (("--optim.batch_norm", "batch", "--optim.head_init", "probe"), True, False),
        ((*ENLARGED, "--weights", "none"), False, False),
    ],
)
def test_enlarged_images_or_the_user_decide_how_it_starts_and_it_resumes_bit_for_bit(
    more: tuple[str, ...],
    probed: bool,
    kept: bool,
    digits: Path,
    tmp_path: Path,
    pretrained: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("--weights", str(pretrained), *more)
    whole = train_run.run_all("torch", settings(digits, tmp_path / "a", *words), NEVER)
    said = capsys.readouterr().out
    assert ("as the images are enlarged (32 to 64 pixels)" in said) == (more == ENLARGED)
    assert ("fc.weight starts from a logistic regression" in said) == probed
    with pytest.raises(Interrupted):
        train_run.run_all("torch", settings(digits, tmp_path / "b", *words), StopAfter(3))
    folder = train_run.run_all("torch", settings(digits, tmp_path / "b", *words), NEVER)
    for name, value in final(whole).items():
        np.testing.assert_array_equal(value, final(folder)[name], err_msg=name)
    state, (best, _) = state_of("test_resnet"), loading.read(whole / "fold_0" / "best" / "model.safetensors")
    for name in filter(lambda name: best[name].shape == state[name].shape, best):
        assert np.array_equal(best[name], state[name]) == (kept and is_buffer(name)), name


def test_images_of_nearly_the_input_size_are_not_enlarged() -> None:
    assert finetune.are_enlarged(32, 64) and not finetune.are_enlarged(33, 64)
    assert not finetune.are_enlarged(0, 64)  # not known: none could be read


@pytest.mark.parametrize("framework", ["torch", "mlx"])
@pytest.mark.parametrize("family", list(tiny.TINY))
def test_a_network_without_classes_gives_what_its_classifier_takes_in(family: str, framework: str) -> None:
    """So a linear probe on these features is a classifier of the network."""
    whole, images = session(framework, family=family), batch().images
    spec, start = tiny.spec(family, num_classes=0), whole.state().weights
    features = session(framework, family=family, num_classes=0, weights=loading.fit(start, spec)[0]).logits(images)
    logits = features @ start[f"{spec.classifier}.weight"].T + start[f"{spec.classifier}.bias"]
    np.testing.assert_allclose(logits, whole.logits(images), rtol=1e-4, atol=1e-5)
