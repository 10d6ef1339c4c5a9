"""Adaptive test-time augmentation: the threshold's fit, and that unsure images get what they would get without it."""

import re

import numpy as np
import pytest
import yaml
from scipy.special import log_softmax, softmax

import infer
from config.errors import ConfigError
from infer import adaptive
from infer.io import inputs
from infer.member import ensemble_of
from infer.runner import Runner
from infer.timings import Timings
from tests.unit import members


def made(rows=400, seed=0):
    """Answers of one pass, wrong more often where the margin is small, and better ones."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 4, rows)
    true = np.eye(4)[targets] * 3
    first = log_softmax(true + rng.normal(size=(rows, 4)) * 2.0, axis=1)
    return first, log_softmax(true + rng.normal(size=(rows, 4)) * 1.2, axis=1), targets


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.5])
def test_the_threshold_is_the_smallest_that_keeps_the_accuracy(loss):
    first, full, targets = made()
    found = adaptive.fit(first, full, targets, full_passes=6, loss=loss)
    top = np.sort(softmax(first, axis=1), axis=1)
    margins = top[:, -1] - top[:, -2]

    def accuracy(threshold):
        said = np.where(margins < threshold, full.argmax(1), first.argmax(1))
        return (said == targets).mean()

    whole = (full.argmax(1) == targets).mean()
    assert found.accuracy == pytest.approx(accuracy(found.threshold)) and found.accuracy >= whole - loss
    smaller = [t for t in np.sort(margins) if t < found.threshold - 1e-12]
    assert all(accuracy(t) < whole - loss for t in smaller)
    assert found.unsure == pytest.approx((margins < found.threshold).mean())
    assert found.passes == pytest.approx(1 + 5 * found.unsure) and found.full_accuracy == pytest.approx(whole)
    assert (found.threshold == 0) == (loss == 0.5)


@pytest.mark.parametrize("keep", ["all", "one"])
def test_unsure_images_get_all_and_sure_ones_one_pass(tmp_path, keep):
    paths, pixels = members.photographs(tmp_path / "images", count=23)
    paths[6].write_bytes(b"")
    folders = [members.checkpoint(tmp_path / "a"), members.checkpoint(tmp_path / "b", 1, members.card(size=16))]
    whole = ensemble_of([str(folder) for folder in folders], ["five"]).model_copy(update={"adaptive": 0.6})
    with Runner(whole, keep=keep) as runner, infer.load(folders[0]) as one:
        full, first = (model.predict(list(pixels)).probabilities for model in (runner, one))
        margins = np.sort(first, axis=1)[:, -1] - np.sort(first, axis=1)[:, -2]
        unsure = margins < 0.6
        assert 3 < unsure.sum() < 20
    with Runner(whole, keep=keep, adaptive=True) as runner:
        grid = runner.grid(len(paths), 4)
        parts = list(runner.stream(inputs.of_paths(paths), grid, 3, skip_bad=True))
    said = np.concatenate([part.probabilities for part in parts])
    good = np.arange(23) != 6
    assert np.isnan(said[6]).all() and parts[1].errors.keys() == {6}
    assert np.allclose(said[good], np.where(unsure[:, None], full, first)[good], atol=2e-6)
    assert sum(part.passes for part in parts) == 23 + 9 * unsure[good].sum()


def test_the_command_says_what_it_saved_and_needs_a_fitted_ensemble(tmp_path, capsys):
    members.photographs(tmp_path / "images", count=9)
    members.checkpoint(tmp_path / "a")
    file = tmp_path / "e.yaml"
    file.write_text(yaml.safe_dump({"members": [{"path": "a"}], "views": ["flips"], "adaptive": 0.7}))
    words = ["--ensemble", str(file), "--images", str(tmp_path / "images"), "--tta", "adaptive", "--out"]
    assert infer.main([*words, str(tmp_path / "s.npz")]) == 0
    said = capsys.readouterr().out
    assert "passes an image in place of 4" in said and re.search(r"s in the networks in place of about \d+\.\d s", said)
    file.write_text(yaml.safe_dump({"members": [{"path": "a"}], "views": ["flips"]}))
    assert infer.main([*words, str(tmp_path / "t.npz")]) == 2
    err = capsys.readouterr().err
    assert "has no fitted threshold" in err and err.count("\n") == 1


def test_the_time_that_was_saved_is_estimated_from_what_was_measured():
    clock = Timings({0: [(10, 9.0), (10, 1.0), (10, 1.0)], 1: [(4, 2.0)]})  # the first call prepares something once
    assert clock.spent == 13.0 and clock.everything(30, members=2, views=4) == pytest.approx(30 * 4 * (0.1 + 0.5))
    assert clock.text(30, 2, 4) == "13.0 s in the networks in place of about 72.0 s, 82% saved"
    assert clock.text(5, 2, 4).endswith("in place of about 12.0 s, 8% more")
    assert clock.everything(30, members=3, views=4) is None and "not measured" in clock.text(30, 3, 4)


def test_an_ensemble_of_other_files_cannot_be_adapted(tmp_path):
    folder = members.checkpoint(tmp_path / "a")
    from infer.commands import adapt

    with pytest.raises(ConfigError, match="is no RUN/fold_K/best"):
        adapt.fit(ensemble_of([str(folder)]))
