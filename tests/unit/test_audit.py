"""`python -m data audit` on a data set with one of everything: what is found, proposed, written and kept."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from config.sections.data import Data
from data import __main__ as command
from data import sources
from data.audit import actions, copies
from data.audit import audit as whole
from data.audit import survey as surveys
from data.audit.duplicates import Pair
from data.audit.fingerprint import Turn
from data.audit.image_stats import ImageStats
from data.audit.survey import Stopped
from data.cache.images import Images
from tests.unit.test_audit_duplicates import scene


def save(path: Path, number: int, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene(number)).save(path, **options)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Classes ant and bee with 12 sound images each, and what is wrong beside them."""
    root = tmp_path_factory.mktemp("messy")
    ant, bee, test = root / "train" / "ant", root / "train" / "bee", root / "test"
    for i in range(12):
        save(ant / f"{i:02}.png", i)
        save(bee / f"{i:02}.png", 20 + i)
        Image.fromarray(scene(40 + i)[::2, ::2] // 2).resize((80, 60)).save(save(test / f"t{i:02}.png", 40 + i))
    shutil.copy(ant / "00.png", ant / "copy.png")
    shutil.copy(ant / "01.png", bee / "clash.png")
    Image.fromarray(np.rot90(scene(2))).save(ant / "turned.png")
    Image.fromarray(scene(21)[:, ::-1]).save(test / "leak.jpg", quality=90)
    (ant / "empty.png").write_bytes(b"")
    (ant / "cut.png").write_bytes((ant / "03.png").read_bytes()[:9000])
    save(ant / "header.jpg", 71)
    (ant / "header.jpg").write_bytes((ant / "header.jpg").read_bytes()[:300])
    (ant / "text.jpg").write_text("no image")
    Image.new("RGB", (160, 120), (250, 250, 250)).save(bee / "blank.png")
    save(bee / "png.jpg", 60, format="PNG")
    Image.fromarray(scene(61)).convert("CMYK").save(bee / "cmyk.jpg")
    Image.fromarray(scene(62)).convert("L").save(bee / "grey.png")
    Image.fromarray(scene(63, 60, 300)).save(bee / "strip.png")
    Image.fromarray(scene(64, 20, 24)).save(bee / "tiny.png")
    frames = [Image.fromarray(scene(65 + i)) for i in range(2)]
    frames[0].save(bee / "moving.gif", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x112] = 6
    save(bee / "exif.jpg", 68, exif=exif)
    save(root / "train" / "Bee" / "few.png", 70)
    return root


@pytest.fixture(scope="module")
def found(root: Path) -> whole.Audit:
    data = Data(root=root)
    return whole.audit(sources.load(root), whole.test_images(data), data)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(
    ("kind", "name", "action"),
    [
        ("empty", "ant/empty.png", "drop"),
        ("truncated", "ant/cut.png", "drop"),
        ("truncated", "ant/header.jpg", "drop"),
        ("unreadable", "ant/text.jpg", "drop"),
        ("near_blank", "bee/blank.png", "drop"),
        ("wrong_extension", "bee/png.jpg", ""),
        ("cmyk", "bee/cmyk.jpg", ""),
        ("grey", "bee/grey.png", ""),
        ("extreme_aspect", "bee/strip.png", ""),
        ("extreme_size", "bee/tiny.png", ""),
        ("animated", "bee/moving.gif", ""),
        ("exif_rotated", "bee/exif.jpg", ""),
        ("exact_duplicate", "ant/copy.png", "drop"),
        ("label_conflict", "bee/clash.png", "drop"),
        ("leak", "bee/01.png", ""),
        ("near_duplicate", "ant/turned.png", "group"),
        ("wrong_way_up", "ant/turned.png", "rotate"),
    ],
)
def test_each_fault_is_found_where_it_is_and_nowhere_else(
    found: whole.Audit, kind: str, name: str, action: str
) -> None:
    mine = [finding for finding in found.findings if finding.kind == kind]
    assert (name, action) in [(finding.id, finding.action) for finding in mine]
    assert len(mine) <= 2, [finding.id for finding in mine]


def test_small_classes_aliases_shifts_and_groups_of_the_whole_data_set_are_found(
    found: whole.Audit, root: Path
) -> None:
    told = {finding.kind: finding.detail for finding in found.findings if not finding.id}
    assert "Bee" in told["small_class"] and "1 image," in told["small_class"]
    assert "'Bee' and 'bee'" in told["alias"]
    shifted = {measure.name for measure in found.measures if measure.shifted}
    assert {"brightness", "width in pixels"} <= shifted and "tilt in degrees" not in shifted
    table = sources.load(root)
    group = dict(zip(table.ids, found.groups.tolist(), strict=True))
    assert group["ant/02.png"] == group["ant/turned.png"] and group["ant/00.png"] == group["ant/copy.png"]
    assert len(set(group.values())) == len(group) - 3, "and no others"


def test_a_copy_is_turned_back_by_what_is_proposed(found: whole.Audit, root: Path) -> None:
    (finding,) = [finding for finding in found.findings if finding.kind == "wrong_way_up"]
    path = found.paths["train", finding.id]
    turns = {path: actions.TURNS[finding.value]}
    np.testing.assert_array_equal(Images(turns=turns)(path), scene(2))
    again = whole.audit(replace(sources.load(root), turns=turns), None, Data(root=root))
    assert "wrong_way_up" not in {finding.kind for finding in again.findings}


def test_a_conflict_names_the_copy_that_has_the_other_label() -> None:
    turn = Turn(False, False, False)
    entries = [
        copies.Entry("1.png", "train", "a"),
        copies.Entry("2.png", "train", "a"),
        copies.Entry("3.png", "train", "b"),
    ]
    facts = [ImageStats(str(i), 1) for i in range(3)]
    pairs = [Pair(i, j, turn, 1, 0.9) for i, j in ((0, 1), (0, 2), (1, 2))]
    told = [finding.detail for finding in copies.find(entries, facts, pairs) if finding.kind == "label_conflict"]
    assert [detail.partition("as well: ")[2].partition(",")[0] for detail in told] == ["3.png", "3.png", "1.png"]


def test_a_group_that_is_most_of_a_class_is_no_group() -> None:
    labels = np.array([0] * 9 + [1] * 9)
    one = np.array([0] * 7 + [1, 2] + [3, 3, 3] + list(range(4, 10)))
    kept = copies.usable(one, labels)
    assert len(set(kept[:9].tolist())) == 9, "seven of nine pages of one layout"
    assert len(set(kept[9:12].tolist())) == 1, "three copies of one picture"


def test_the_command_writes_what_can_be_edited_and_never_over_it(root, tmp_path, capsys) -> None:
    words = ["audit", "--root", str(root), "--out", str(tmp_path / "out")]
    assert command.main(words) == 0
    said = capsys.readouterr().out
    assert "2 label conflict (one picture under two labels)" in said
    table = tmp_path / "out" / "audit.csv"
    before = rows(table)
    assert list(before[0]) == ["ID", "split", "target", "finding", "detail", "related", "action", "value"]
    assert before[0]["ID"] == "ant/text.jpg"
    assert command.main(words) == 0
    assert "(0 of them unchanged" not in capsys.readouterr().out
    assert not (tmp_path / "out" / "audit_2.csv").exists()
    table.write_text("ID,action\nant/text.jpg,\n")
    assert command.main(words) == 0
    assert table.read_text() == "ID,action\nant/text.jpg,\n" and rows(tmp_path / "out" / "audit_2.csv") == before


def test_the_page_stands_alone_and_runs_nothing_that_a_file_name_says(root, tmp_path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(root, copy)
    (copy / "train" / "ant" / "<img src=x onerror=alert(1)>.jpg").write_text("no image")
    assert command.main(["audit", "--root", str(copy), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "audit.html").read_text()
    assert "<img src=x" not in page and "http://" not in page and "https://" not in page
    inside = json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[0])
    assert {row["ID"] for row in inside["rows"]} >= {"ant/<img src=x onerror=alert(1)>.jpg", "ant/copy.png"}
    assert inside["pictures"]["train/ant/copy.png"].startswith("data:image/jpeg;base64,")
    assert "train/ant/text.jpg" not in inside["pictures"]


def test_only_what_changed_is_looked_at_again(root, tmp_path, monkeypatch) -> None:
    copy = tmp_path / "data"
    shutil.copytree(root, copy)
    data = Data(root=copy)
    first = whole.audit(sources.load(copy), whole.test_images(data), data)
    assert first.looked == len(first.paths)
    save(copy / "train" / "ant" / "00.png", 99)
    again = whole.audit(sources.load(copy), whole.test_images(data), data)
    assert again.looked == 1
    assert "exact_duplicate" not in {finding.kind for finding in again.findings}
    monkeypatch.setattr(surveys, "VERSION", -1)
    assert whole.audit(sources.load(copy), None, data).looked == len(sources.load(copy).ids)


def test_what_was_looked_at_before_a_stop_is_kept(root, tmp_path) -> None:
    paths = [path for path in sources.load(root).paths if path.stat().st_size]
    asked = iter(range(1000))
    with pytest.raises(Stopped):
        surveys.survey(paths, tmp_path, workers=1, stop=lambda: next(asked) >= 10)
    assert surveys.survey(paths, tmp_path).looked == len(paths) - 10


def test_a_cache_that_is_damaged_or_cannot_be_written_is_no_obstacle(root, tmp_path, monkeypatch, capsys) -> None:
    paths = sources.load(root).paths[:6]
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path))
    surveys.survey(paths, root)
    (file,) = tmp_path.rglob("*.npz")
    file.write_bytes(file.read_bytes()[:500])
    assert surveys.survey(paths, root).looked == len(paths)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "file"))
    assert surveys.survey(paths, root).looked == len(paths)
    assert "not kept for the next time" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--root", "nowhere"], ["--root", ".", "--data.audot", "1"]])
def test_a_mistake_is_one_line(words, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main(["audit", *words]) in (1, 2)
    assert len(capsys.readouterr().err.strip().splitlines()) == 1 and not list(tmp_path.iterdir())
