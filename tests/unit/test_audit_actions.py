"""An edited audit.csv does what it says to the table, and what it cannot do is refused with the line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from config.errors import DataError
from data import sources
from data.audit import actions

FILE = Path("audit.csv")


def table(*labels: str) -> sources.Table:
    names = tuple(sorted(set(labels)))
    ids = [f"i{n}" for n in range(len(labels))]
    numbers = np.array([names.index(label) for label in labels], dtype=np.int64)
    return sources.Table(ids, [Path(name) for name in ids], numbers, names, Path())


def done(given: sources.Table, text: str, tmp_path: Path) -> actions.Applied:
    file = tmp_path / "audit.csv"
    file.write_text(f"ID,split,finding,action,value\n{text}")
    return actions.apply(given, actions.read(file), FILE)


def test_drop_relabel_rotate_and_group(tmp_path) -> None:
    after = done(
        table("a", "a", "b", "c", "a"),
        "i0,train,x,drop,\ni0,train,y,relabel,b\ni3,,x,Relabel,b\ni2,train,x,rotate,90\n"
        "i1,train,x,group,g\ni4,train,x,group,g\ni4,test,x,drop,\n,,shift,,\ni2,train,x,,\ngone,train,x,drop,\n",
        tmp_path,
    )
    assert after.table.ids == ["i1", "i2", "i3", "i4"]
    assert after.table.class_names == ("a", "b"), "c has no image left"
    assert [after.table.class_names[label] for label in after.table.labels] == ["a", "b", "b", "a"]
    groups = after.table.groups
    assert groups is not None and groups[0] == groups[3] and len(set(groups.tolist())) == 3
    assert after.summary() == "1 drop, 2 relabel, 2 group, 1 rotate"
    assert list(after.table.turns) == [Path("i2")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("i0,train,x,dorp,\n", r"line 2 has action 'dorp' \(did you mean drop\?\)"),
        ("i0,train,x,relabel,\n", "line 2 says relabel and has no value"),
        ("i0,train,x,relabel,aa\n", "line 2 relabels to 'aa', which is no class, did you mean 'a'"),
        ("i0,train,x,rotate,45\n", "write 90, 180 or 270"),
        ("i0,train,x,relabel,b\ni0,train,x,relabel,c\n", r"lines 2 and 3 relabel 'i0' to 'b' and to 'c'"),
        ("i9,train,x,rotate,90\n", "names 'i9', which is not in the data set"),
        ("i2,train,x,drop,\ni3,train,x,drop,\n", "leaves 2 images of 1 class;"),
    ],
)
def test_what_cannot_be_done_is_refused(text: str, said: str, tmp_path) -> None:
    with pytest.raises(DataError, match=said):
        done(table("a", "a", "b", "c"), text, tmp_path)


def test_another_table_is_refused(tmp_path) -> None:
    (tmp_path / "train.csv").write_text("ID,target\ni0,a\n")
    with pytest.raises(DataError, match="no column 'action'"):
        actions.read(tmp_path / "train.csv")
