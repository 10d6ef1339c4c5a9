"""Fitting as a user does it: commands on runs whose out-of-fold answers are those of their own checkpoints."""

import json

import numpy as np
import pytest
import yaml
from scipy.special import softmax
from sklearn.model_selection import LeaveOneGroupOut

import infer
from config.errors import CheckpointError, ConfigError, DataError, WeightsError
from data import csvfile
from ensemble import ensemble_file, ensemble_fit, fit, nested
from ensemble.ensemble_fit import Plan
from ensemble.oof import npz, oof_files
from infer import views_oof
from infer.runner import Runner
from tests.unit import members
from tests.unit.test_ensemble import fitted_runs
from tests.unit.test_pool import problem, table


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """Two runs of one fold each on real pixels, whose `oof.npz` is what their checkpoints say."""
    place = tmp_path_factory.mktemp("campaign")
    paths, pixels = members.photographs(place / "data" / "train", count=48)
    rng = np.random.default_rng(0)
    targets = np.concatenate([np.arange(3), rng.integers(0, 3, 45)])
    names = [path.name for path in paths]
    rows = [[name, members.CLASSES[target]] for name, target in zip(names, targets, strict=True)]
    csvfile.write(place / "data" / "train.csv", ["ID", "target"], rows)
    runs = []
    for number in range(2):
        run = members.run(place / f"run_{number}", [np.zeros((48, 3))], targets, names)
        best = members.checkpoint(place / "new" / str(number), seed=5 + number)
        (run / "fold_0" / "best").rename(place / f"old_{number}")
        best.rename(run / "fold_0" / "best")
        with infer.load(run / "fold_0" / "best") as model:
            logits = np.log(model.predict(list(pixels)).probabilities)
        np.savez(run / "fold_0" / "oof.npz", ids=np.array(names), targets=targets, logits=logits)
        (run / "config.yaml").write_text(yaml.safe_dump({"data": {"root": str(place / "data")}}))
        runs.append(run)
    return runs, paths, targets


PLANS = [
    Plan(),
    Plan(combine="logits", clip=True),
    Plan("greedy", metric="macro_f1", calibrations=("vector",), rules=("prior",)),
    Plan("fixed", combine="ranks", given=(20.0, 15.0), calibrations=("isotonic",)),
    Plan("stacking", calibrations=("vector",), rules=("thresholds",)),
    Plan("equal", calibrations=("none",)),
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.method}-{plan.combine}-{plan.calibrations[0]}")
@pytest.mark.parametrize("views", [("original",), ("original", "hflip")], ids=["plain", "views"])
def test_inference_gives_what_was_fitted(campaign, tmp_path, plan, views):
    runs, paths, _ = campaign
    merge = {"logits": "logits", "ranks": "max"}.get(plan.combine) if len(views) > 1 else None
    if len(views) > 1:
        [list(views_oof.predict(run, views, merge or "probabilities", 16, 1)) for run in runs]
    fitted = fit.fit(runs, views, plan=plan, merge=merge)
    files = fit.write(tmp_path / "e.yaml", fitted)
    assert all(file.exists() for file in files) and not any("fitted on the original" in n for n in fitted.notes)
    given = oof_files.align([oof_files.read(run, views, merge or "probabilities") for run in runs])
    expected = ensemble_fit.mix(fitted.blend, given)
    with Runner(ensemble_file.read(tmp_path / "e.yaml")) as runner:
        answers = np.concatenate([part.probabilities for part in runner.run(paths)])
        assert np.allclose(answers, np.exp(expected), atol=2e-5)
        labels = ensemble_fit.decision.labels(expected, fitted.blend.shifts)
        assert (runner.finish.labels(answers) == labels).mean() > 0.95
        assert all(m.predict([paths[0]]).probabilities.sum() == pytest.approx(1) for m in runner.members())


def test_views_are_answered_once_and_only_for_what_there_is(campaign, capsys, tmp_path):
    runs, _, _ = campaign
    words = ["oof", str(runs[0]), "--tta", "flips"]
    assert infer.main(words) == 0 and "48 images, 4 views" in capsys.readouterr().out
    assert infer.main(words) == 0 and "is there already" in capsys.readouterr().out
    assert infer.main(["oof", str(runs[0]), "--tta", "none"]) == 2
    assert infer.main(["oof", str(tmp_path), "--tta", "flip"]) == 1
    assert "has no finished fold" in capsys.readouterr().err
    # The other run has no such answers, so that both are fitted on the original view, and the way out is named.
    fitted = fit.fit(runs, ("original", "hflip", "vflip", "hvflip"))
    assert fitted.ensemble.tempered == "views"
    assert any("python -m infer oof" in note and "--tta" in note for note in fitted.notes)


def first_blend(table, plan):
    """What the first of the plan's calibrations and the first of its rules come to on the table's rows."""
    pool = ensemble_fit.fit_pool(table, plan)
    logs = ensemble_fit.mix_pool(table, pool)
    step = ensemble_fit.fit_step(plan.calibrations[0], logs, table.targets, plan.clip)
    rule = plan.rules[0] if plan.rules else None
    return ensemble_fit.EnsembleFit(pool, step, ensemble_fit.shifts(rule, step.apply(logs), table.targets))


def test_the_nested_answers_are_those_of_fits_without_the_fold():
    targets, answers = problem(300, 4, 0, (2.0, 1.5, 0.0))
    given, plan = table(targets, answers, folds=3), Plan(metric="macro_f1", rules=("prior",))
    found = nested.evaluate(given, plan)
    for seen, unseen in LeaveOneGroupOut().split(targets, groups=given.fold):
        alone = first_blend(given.take(seen), plan)
        expected = ensemble_fit.mix(alone, given.take(unseen))
        assert np.allclose(found.predictions["temperature"][unseen], expected, atol=1e-5)
        assert np.array_equal(found.labels["prior"][unseen], ensemble_fit.decision.labels(expected, alone.shifts))
    assert len(np.unique(nested.parts(table(targets, answers, folds=1), 0))) == 5


def test_an_honest_figure_shows_overfitting_that_the_fitted_one_hides():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 10, 60)
    given = table(targets, [rng.normal(size=(60, 10)) for _ in range(5)])
    plan = Plan("stacking", calibrations=("isotonic",))
    found = nested.evaluate(given, plan)
    seen = ensemble_fit.mix(first_blend(given, plan), given)
    fitted = -seen[np.arange(60), targets].mean()
    assert found.after["none"].log_loss < found.after["isotonic"].log_loss and found.kind == "none"
    assert fitted < 1.8 and found.after["isotonic"].log_loss > np.log(10)


def test_the_command_writes_data_and_a_picture_that_agree_with_its_text(tmp_path, capsys):
    _, _, runs = fitted_runs(tmp_path)
    out = tmp_path / "out" / "e.yaml"
    words = ["fit", *runs, "--out", out, "--metric", "macro_f1", "--calibration", "temperature", "isotonic", "none"]
    words += ["--alias", "a=alpha"]
    assert infer.main([str(word) for word in words]) == 0
    text, data = capsys.readouterr().out, json.loads((tmp_path / "out" / "e_analysis.json").read_text())
    assert [score["name"] for score in data["after"]] == ["temperature", "isotonic", "no calibration"]
    expected = data["expected"]["macro_f1"]
    assert f"macro_f1  {expected['value']:.4f} ({expected['low']:.4f} to {expected['high']:.4f})" in text
    assert expected["low"] < expected["value"] < expected["high"]
    assert sum(data["histogram"]["right"] + data["histogram"]["wrong"]) == 900
    assert sum(data["histogram"]["wrong"]) == pytest.approx(900 * (1 - data["expected"]["accuracy"]["value"]))
    assert data["mistakes"][0]["probability"] >= data["mistakes"][-1]["probability"]
    assert data["agreement"][0][0] == 1 and data["agreement"][0][1] == data["agreement"][1][0] < 1
    assert len(data["folds"]) == 3 and data["confused"][0]["count"] >= data["confused"][-1]["count"]
    assert (tmp_path / "out" / "e_reliability.png").read_bytes()[:4] == b"\x89PNG"
    assert ensemble_file.read(out).aliases == (("a", "alpha"),)
    assert infer.main([str(word) for word in words]) == 2
    out.unlink()  # then what belonged to it is made anew
    assert infer.main([str(word) for word in words]) == 0
    assert infer.main([*map(str, words[: len(runs) + 1]), "--out", str(tmp_path / "x.yaml"), "--weights", "1"]) == 2
    assert "1 weights for 3 runs" in capsys.readouterr().err
    assert infer.main(["fit", str(runs[0]), f"{runs[0]}/", "--out", str(tmp_path / "x.yaml")]) == 2
    assert "is named twice" in capsys.readouterr().err and not (tmp_path / "x.yaml").exists()


def test_runs_with_fewer_folds_are_fitted_and_said_so(tmp_path):
    _, _, runs = fitted_runs(tmp_path)
    (runs[1] / "fold_2" / "oof.npz").unlink()
    for method in ("convex", "greedy", "stacking"):
        fitted = fit.fit(runs[:2], plan=Plan(method))
        assert fitted.notes[0] == "other answers 600 of 900 images (folds 0, 1); the others stand in for it"
        assert ("fitted on the 600 images that all runs answer" in fitted.notes) == (method != "convex")
        assert fitted.cross_fitted.rows == 900 and fitted.cross_fitted.log_loss < fitted.equal.log_loss


def test_a_run_of_one_fold_is_fitted_with_others(tmp_path):
    """Without that fold nothing is known of the run: it then counts at temperature 1."""
    _, _, runs = fitted_runs(tmp_path)
    for number in (1, 2):
        (runs[1] / f"fold_{number}" / "oof.npz").unlink()
    fitted = fit.fit(runs[:2])
    assert fitted.notes[0] == "other answers 300 of 900 images (folds 0); the others stand in for it"
    assert fitted.cross_fitted.rows == 900 and fitted.cross_fitted.log_loss < fitted.equal.log_loss


def test_repeated_folds_are_averaged(tmp_path):
    targets, answers, runs = fitted_runs(tmp_path, folds=2, rows=60)
    first = oof_files.read(runs[0])
    for fold in (0, 1):
        (runs[0] / f"fold_{fold + 2}").mkdir()
        other = runs[1] / f"fold_{fold}"
        (other / "best").rename(runs[0] / f"fold_{fold + 2}" / "best")
        (other / "oof.npz").rename(runs[0] / f"fold_{fold + 2}" / "oof.npz")
    with pytest.raises(DataError, match="two folds both answer"):
        oof_files.read(runs[0])
    (runs[0] / "folds.csv").write_text("ID,target,fold,fold_2\n")
    run = oof_files.read(runs[0])
    order = np.argsort(np.concatenate([np.arange(60)[0::2], np.arange(60)[1::2]]))
    assert np.array_equal(run.ids, first.ids)
    mean = (softmax(answers[0], axis=1) + softmax(answers[1], axis=1)) / 2
    assert np.allclose(np.exp(np.asarray(run.logits)[order]), mean, atol=1e-5)
    assert np.array_equal(run.targets[order], targets)


def test_large_answers_are_mapped_and_damage_is_found(tmp_path):
    path, logits = tmp_path / "a.npz", np.random.default_rng(0).normal(size=(400, 60)).astype(np.float32)
    np.savez(path, logits=logits, few=np.arange(3))
    arrays = npz.read(path)
    assert isinstance(arrays["logits"], np.memmap) and not isinstance(arrays["few"], np.memmap)
    assert np.array_equal(arrays["logits"], logits) and np.array_equal(arrays["few"], np.arange(3))
    np.savez_compressed(tmp_path / "b.npz", logits=logits)
    assert np.array_equal(npz.read(tmp_path / "b.npz")["logits"], logits)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(Exception, match="checksum"):
        npz.read(path)


def test_layers_that_do_not_fit_are_refused(campaign, tmp_path):
    runs, _, _ = campaign
    fitted = fit.fit(runs, plan=Plan(calibrations=("vector",)))
    fit.write(tmp_path / "e.yaml", fitted)
    layers = tmp_path / "e_layers.safetensors"
    whole, text = layers.read_bytes(), (tmp_path / "e.yaml").read_text()
    layers.write_bytes(whole[:-9])
    with pytest.raises(WeightsError, match="damaged"):
        infer.load(tmp_path / "e.yaml")
    layers.unlink()
    with pytest.raises(ConfigError, match=r"layers .* do not exist"):
        infer.load(tmp_path / "e.yaml")
    from ensemble.calibration.maps import Vector
    from ensemble.fitted_params import FittedParams, write

    write(layers, FittedParams(map=Vector(np.ones(4), np.zeros(4))))
    with pytest.raises(WeightsError, match="other classes"):
        infer.load(tmp_path / "e.yaml")
    (tmp_path / "f.yaml").write_text(text.replace("layers: e_layers.safetensors", "class_multipliers: {dog: 2.0}"))
    with pytest.raises(ConfigError, match="'dog' is no class"):
        infer.load(tmp_path / "f.yaml")


def test_a_run_whose_images_are_gone_is_one_line(campaign, tmp_path):
    runs, _, _ = campaign
    with pytest.raises((DataError, ConfigError)) as caught:
        (tmp_path / "config.yaml").write_text("data: {root: /nowhere}\n")
        (tmp_path / "fold_0").symlink_to(runs[0] / "fold_0")
        list(views_oof.predict(tmp_path, ("original", "rot90"), "probabilities", 8, 1))
    assert "/nowhere" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="no such run folder"):
        oof_files.finished(tmp_path / "nothing")
