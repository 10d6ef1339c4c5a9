import os
import re

import numpy as np
import pytest
import yaml
from scipy.special import log_softmax, softmax
from sklearn.metrics import f1_score, log_loss

import infer
from config.errors import CheckpointError, ConfigError, DataError, TandemError
from ensemble import ensemble_file, fit
from ensemble.ensemble_file import Ensemble
from ensemble.member import Member
from ensemble.oof import oof_files
from ensemble.weighting.average import WeightedAverage
from infer.member import parse
from tests.unit import members


def written(tmp_path, text):
    path = tmp_path / "ensemble.yaml"
    path.write_text(text)
    return path


def test_a_file_comes_back_the_same_and_moves_with_its_members(tmp_path, monkeypatch):
    members.checkpoint(tmp_path / "campaign" / "run" / "best")
    monkeypatch.chdir(tmp_path)
    one = Member(path="campaign/run/best", runtime="numpy", group="run", weight=0.25, temperature=1.25)
    whole = Ensemble(combine="logits", temperature=0.9, views=("original", "rot90"), members=(one,))
    ensemble_file.write(tmp_path / "campaign" / "e.yaml", whole)
    assert yaml.safe_load((tmp_path / "campaign" / "e.yaml").read_text())["members"][0]["path"] == "run/best"
    (tmp_path / "campaign").rename(tmp_path / "moved")
    back = ensemble_file.read(tmp_path / "moved" / "e.yaml")
    assert back.members[0].path == tmp_path / "moved" / "run" / "best"
    assert back.model_copy(update={"members": whole.members}) == whole


def test_a_file_is_not_overwritten(tmp_path):
    path = written(tmp_path, "precious")
    with pytest.raises(ConfigError, match="exists already"):
        ensemble_file.write(path, Ensemble(members=(Member(path=tmp_path),)))
    assert path.read_text() == "precious"
    with pytest.raises(ConfigError, match=f"{path} is a file, not a folder"):
        ensemble_file.refuse_existing(path / "new" / "e.yaml")


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("members:\n- {path: ., wieght: 1}", ["members.0.wieght: unknown key; did you mean weight?"]),
        ("member: []", ["members: is missing", "member: unknown key; did you mean members?"]),
        ("members:\n- {path: ., weight: -1}", ["members.0.weight: ", "found -1"]),
        ("members:\n- {path: ., weight: .nan}", ["members.0.weight: found nan; expected a number >= 0"]),
        ("members:\n- {path: ., weight: 0}", ["weights of all members are 0"]),
        ("members: []", ["members: found []; expected a list of mappings, not an empty one"]),
        ("views: [hflp]\nmembers:\n- path: .", ["views: view 'hflp' is not known; did you mean hflip"]),
        (
            "combine: mean\ntemperature: 0\nmembers:\n- path: .",
            [
                "combine: found 'mean'; expected one of probabilities, logits, ranks",
                "temperature: found 0; expected a number > 0",
            ],
        ),
        ("members:\n- path: here\n- path: there", ["do not exist: ", "here", "there"]),
        ("members: [", ["not a YAML file"]),
        ("- a", ["must be a mapping"]),
        ("!!python/object/apply:os.system ['true']", ["not a YAML file"]),
        ("version: 2\nmembers:\n- path: .", ["version: found 2; expected 1"]),
        ("members:\n- {path: [a], options: {compile: maybe}}", ["members.0.path: found [a]; expected a path"]),
        (
            "members:\n- {path: ., options: {compile: maybe}}",
            ["compile: found 'maybe'; expected true or false"],
        ),
    ],
)
def test_every_fault_of_a_file_is_named_in_one_line(tmp_path, text, faults):
    with pytest.raises(ConfigError) as caught:
        ensemble_file.read(written(tmp_path, text))
    message = str(caught.value)
    assert all(fault in message for fault in ["ensemble.yaml: ", *faults]) and "\n" not in message


def test_a_runtime_after_at_is_told_from_an_at_in_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd@name").mkdir()
    assert parse("a/b@mlx") == Member(path="a/b", runtime="mlx")
    assert parse("odd@name") == Member(path="odd@name")
    assert parse("odd@name@torch") == Member(path="odd@name", runtime="torch")


def test_a_mixture_of_equal_answers_is_the_answer():
    logits = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32) * 30
    for combine in ("probabilities", "logits"):
        mixture = WeightedAverage(combine)
        for weight in (0.2, 3.0):
            mixture.add(logits, weight)
        assert np.allclose(mixture.log_probabilities(), log_softmax(logits.astype(float), axis=1), atol=1e-9)


def test_a_mixture_skips_what_is_missing():
    first, second = np.random.default_rng(0).normal(size=(2, 3, 4))
    mixture = WeightedAverage()
    mixture.add(first, np.array([1.0, 0.0, 1.0]))
    mixture.add(second, np.array([3.0, 3.0, 0.0]))
    p, q = softmax(first, axis=1), softmax(second, axis=1)
    expected = np.stack([0.25 * p[0] + 0.75 * q[0], q[1], p[2]])
    assert np.allclose(np.exp(mixture.log_probabilities()), expected, atol=1e-12)


def problem(rows=900, classes=4, seed=0):
    """Targets, and logits of a good run, a different good run, and one of noise; all are overconfident."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, rows)
    truth = np.eye(classes)[targets]
    answers = [sharp * truth + rng.normal(size=(rows, classes)) for sharp in (2.0, 1.5, 0.0)]
    return targets, [4 * answer for answer in answers], [f"{i:04}.png" for i in rng.permutation(rows)]


def test_the_weights_are_the_optimum_that_theory_demands():
    targets, answers, _ = problem()
    true = np.stack([softmax(a / 4, axis=1)[np.arange(len(targets)), targets] for a in answers], axis=1)
    weights = fit.optimum(true, np.ones_like(true, dtype=bool))
    # Kuhn-Tucker for mixture proportions: the mean ratio is 1 where the weight is positive and at most 1 elsewhere.
    ratios = (true / (true @ weights)[:, None]).mean(axis=0)
    assert weights.sum() == pytest.approx(1) and weights[2] < 0.01 < weights[1] < weights[0]
    assert np.allclose(ratios[weights > 0], 1, atol=1e-4) and (ratios <= 1 + 1e-4).all()


def test_the_weights_are_what_scikit_learns_log_loss_finds_on_a_grid():
    targets, answers, _ = problem(rows=300)
    first, second = (softmax(a / 4, axis=1) for a in answers[:2])
    grid = np.linspace(0, 1, 201)
    losses = [log_loss(targets, w * first + (1 - w) * second) for w in grid]
    true = np.stack([p[np.arange(300), targets] for p in (first, second)], axis=1)
    assert fit.optimum(true, np.ones_like(true, dtype=bool))[0] == pytest.approx(grid[np.argmin(losses)], abs=0.005)


def fitted_runs(tmp_path, folds=3, rows=900):
    targets, answers, ids = problem(rows)
    of = members.card(("a", "b", "c", "d"))
    names = ("good", "other", "noise")
    return (
        targets,
        answers,
        [
            members.run(tmp_path / name, [answer] * folds, targets, ids, of)
            for name, answer in zip(names, answers, strict=True)
        ],
    )


def test_a_fit_finds_the_good_runs_and_reports_scikit_learns_scores(tmp_path):
    targets, answers, runs = fitted_runs(tmp_path)
    found = fit.fit(runs)
    for score, answer in zip(found.runs, answers, strict=True):
        assert score.log_loss == pytest.approx(log_loss(targets, softmax(answer, axis=1)), rel=1e-5)
        assert score.macro_f1 == pytest.approx(f1_score(targets, answer.argmax(axis=1), average="macro"))
    assert found.fitted.log_loss < min(score.log_loss for score in found.runs)
    assert found.fitted.log_loss < found.equal.log_loss
    # Nearly as good on rows it did not see, and never better: the fitted figure flatters.
    assert found.fitted.log_loss < found.cross_fitted.log_loss < found.fitted.log_loss + 0.01
    # The answers are 4 (s t + noise), whose exact posterior is softmax(4 s / 4 (s t + noise)): temperature 4 / s.
    assert found.blend.pool.temperatures[:2] == pytest.approx((4 / 2, 4 / 1.5), rel=0.15)
    assert found.cross_fitted.ece < 0.5 * found.runs[0].ece


def test_folds_share_the_weight_of_their_run(tmp_path):
    _, _, runs = fitted_runs(tmp_path)
    found = fit.fit(runs[:2], views=("original", "shift_left"))
    listed = found.ensemble.members
    assert [m.path for m in listed] == [run / f"fold_{k}" / "best" for run in runs[:2] for k in range(3)]
    assert [m.group for m in listed] == ["good"] * 3 + ["other"] * 3 and found.ensemble.views[1] == "shift_left"
    assert np.allclose([m.weight for m in listed], np.repeat(found.blend.pool.weights / 3, 3))
    assert [m.temperature for m in listed] == [t for t in found.blend.pool.temperatures for _ in range(3)]
    assert "at inference each member sees original, shift_left" in fit.report(found)


def test_useless_runs_are_left_out_and_one_run_is_enough(tmp_path):
    targets, _, runs = fitted_runs(tmp_path)
    assert len(fit.fit(runs[:1]).ensemble.members) == 3
    wrong = [np.roll(np.eye(4), 1, axis=0)[targets] * 9.0] * 3
    ids = oof_files.read(runs[0]).ids
    order = np.concatenate([np.arange(900)[k::3] for k in range(3)])
    bad = members.run(tmp_path / "bad", wrong, targets, ids[np.argsort(order)], members.card(("a", "b", "c", "d")))
    assert {m.group for m in fit.fit([runs[0], bad]).ensemble.members} == {"good"}


def test_runs_align_by_image_and_missing_rows_take_the_others(tmp_path):
    targets, answers, runs = fitted_runs(tmp_path)
    (runs[1] / "fold_2" / "oof.npz").unlink()
    table = oof_files.align([oof_files.read(run) for run in runs[:2]])
    assert list(table.ids) == sorted(table.ids) and [int(p.sum()) for p in table.present] == [900, 600]
    _, _, ids = problem()
    order = np.argsort(ids)
    assert np.array_equal(table.targets, targets[order])
    assert np.array_equal(table.logits[0], answers[0][order].astype(np.float32))
    found = fit.fit(runs[:2])
    alone = np.exp(log_softmax(answers[0][order] / found.blend.pool.temperatures[0], axis=1))
    mixed = np.exp(fit.mix(found.blend, table))
    tempered = alone ** (1 / found.blend.step.temperature)
    tempered /= tempered.sum(axis=1, keepdims=True)
    assert np.allclose(mixed[~table.present[1]], tempered[~table.present[1]], atol=1e-5)
    assert len(found.ensemble.members) == 5


def test_an_artefact_takes_the_place_of_a_fold(tmp_path, capsys):
    _, _, runs = fitted_runs(tmp_path)
    other = members.checkpoint(tmp_path / "elsewhere", seed=9, of=members.card(("a", "b", "c", "d")))
    out = tmp_path / "out" / "e.yaml"
    words = ["fit", *runs[:2], "--out", out, "--views", "flip", "--replace", f"{runs[0]}/fold_1={other}@numpy"]
    assert infer.main([str(word) for word in words]) == 0
    assert re.search(r"^cross-fitted +900 ", capsys.readouterr().out, re.MULTILINE)
    back = ensemble_file.read(out)
    places = [os.path.normpath(m.path) for m in back.members]
    assert str(other) in places and str(runs[0] / "fold_1" / "best") not in places and len(places) == 6
    with infer.load(out) as model:
        assert model.predict([np.zeros((32, 32, 3), np.uint8)]).probabilities.sum() == pytest.approx(1)
    assert infer.main([*map(str, words[:-1]), f"{tmp_path}/fold_9={other}"]) == 2
    assert "exists already" in capsys.readouterr().err
    out.unlink()
    assert infer.main([*map(str, words[:-1]), f"{tmp_path}/fold_9={other}"]) == 2
    assert "is no fold of these runs" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    ("spoil", "error", "text"),
    [
        (
            lambda runs: (runs[0] / "fold_0" / "oof.npz").write_bytes(b"PK"),
            CheckpointError,
            "fold_0/oof.npz: is damaged",
        ),
        (lambda runs: [p.unlink() for p in runs[1].glob("*/oof.npz")], CheckpointError, "has no finished fold"),
        (lambda runs: resave(runs[1], targets=lambda t: (t + 1) % 4), DataError, "another target"),
        (lambda runs: resave(runs[1], targets=lambda t: t + 4), CheckpointError, "outside 0..3"),
        (lambda runs: resave(runs[1], logits=lambda z: z[:, :3]), CheckpointError, "do not fit 4 classes"),
        (lambda runs: resave(runs[1], logits=lambda z: z * np.nan), CheckpointError, "not finite"),
        (
            lambda runs: resave(runs[1], ids=lambda i: np.full_like(i, "x")),
            DataError,
            "two folds both answer image 'x'",
        ),
    ],
)
def test_a_spoilt_run_is_one_line(tmp_path, spoil, error, text):
    runs = fitted_runs(tmp_path, rows=60)[2][:2]
    spoil(runs)
    with pytest.raises(error, match=text) as caught:
        fit.fit(runs)
    assert isinstance(caught.value, TandemError) and "\n" not in str(caught.value)


def resave(run, **changes):
    path = run / "fold_1" / "oof.npz"
    with np.load(path) as file:
        arrays = {name: changes.get(name, lambda value: value)(file[name]) for name in file.files}
    np.savez(path, **arrays)
