"""The rules of the house: imports run one way, and only files that say so import a framework."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Each package may import those of the levels below its own, and itself.
LEVELS = [
    {"config", "models", "ports"},
    {"data", "backends"},
    {"ensemble"},
    {"infer"},
    {"convert"},
    {"training"},
    {"doctor"},
]
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}
FRAMEWORKS = {"torch", "torchvision", "timm", "mlx", "mlxim", "coremltools", "onnx", "onnxruntime", "onnxscript"}
NAMED_FOR_IT = ("torch", "mlx", "timm", "onnx", "coreml", "mil", "ports", "zoo", "convert")


def sources() -> list[Path]:
    return sorted(p for package in LEVEL for p in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of all imports of a file, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    level = LEVEL[path.relative_to(ROOT).parts[0]]
    upward = {name for name in imported(path) if LEVEL.get(name, -1) > level}
    assert not upward, f"{path} imports {upward}, which stands above it"


def graph() -> dict[str, set[str]]:
    """The files that each file imports, by dotted name; imports inside functions count too."""
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in sources()}
    found = {}
    for name, path in names.items():
        targets = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                full = (f"{node.module}.{alias.name}" for alias in node.names)
                targets |= {target if target in names else node.module for target in full}
            elif isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
        found[name] = {
            target for target in targets & names.keys() if target != name and not name.startswith(f"{target}.")
        }
    return found


def test_no_file_imports_itself_through_others_and_chains_of_imports_are_short() -> None:
    files, depths = graph(), dict[str, int]()

    def depth(name: str, path: tuple[str, ...]) -> int:
        assert name not in path, f"a circle of imports: {' -> '.join([*path, name])}"
        if name not in depths:
            depths[name] = 1 + max((depth(target, (*path, name)) for target in files[name]), default=0)
        return depths[name]

    deepest = max(files, key=lambda name: depth(name, ()))
    assert depths[deepest] <= 15, f"{deepest} stands on {depths[deepest]} files; import less, or split what it needs"


def test_no_folder_holds_more_files_than_a_reader_can_survey() -> None:
    counts = Counter(path.parent for path in sources())
    assert max(counts.values()) <= 15, counts.most_common(1)


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_frameworks_only_where_the_name_says_so(path: Path) -> None:
    relative = path.relative_to(ROOT)
    if any(word in part for part in relative.parts for word in NAMED_FOR_IT):
        return
    assert not imported(path) & FRAMEWORKS


BLOCKER = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {blocked!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Block())
sys.argv = {argv!r}
import runpy
if {argv!r}[0].endswith('.py'):
    runpy.run_path({argv!r}[0], run_name='__main__')
else:
    runpy.run_module({argv!r}[0], run_name='__main__', alter_sys=True)
"""
TORCH_SIDE = {"torch", "torchvision", "timm", "onnx", "onnxruntime", "onnxscript", "coremltools"}
MLX_SIDE = {"mlx", "mlxim"}


def run_without(blocked: set[str], *argv: str) -> subprocess.CompletedProcess[str]:
    code = BLOCKER.format(blocked=blocked, argv=list(argv))
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)


PROGRAMS = (
    "train_torch.py",
    "train_mlx.py",
    "infer",
    "convert",
    "models",
    "training",
    "data",
    "backends",
    "doctor",
    "benchmarks",
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_needs_no_framework(program: str) -> None:
    done = run_without(TORCH_SIDE | MLX_SIDE, program, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


@pytest.mark.parametrize(
    ("program", "blocked", "extra"), [("train_torch.py", TORCH_SIDE, "torch"), ("train_mlx.py", MLX_SIDE, "mlx")]
)
def test_a_missing_framework_is_one_line_that_names_the_install(program, blocked, extra, digits, tmp_path) -> None:
    done = run_without(blocked, program, "--data.root", str(digits), "--out", str(tmp_path))
    assert done.returncode == 1
    assert f'pip install -e ".[{extra}]"' in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(("program", "blocked"), [("train_torch.py", MLX_SIDE), ("train_mlx.py", TORCH_SIDE)])
def test_each_engine_trains_where_the_other_is_not_installed(program, blocked, digits, tmp_path) -> None:
    done = run_without(
        blocked,
        program,
        *("--data.root", str(digits), "--out", str(tmp_path), "--model", "convnext_atto", "--weights", "none"),
        *("--data.image_size", "32", "--train.epochs", "1", "--train.batch_size", "16", "--train.compile", "off"),
        *("--schedule.warmup_epochs", "0"),
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("*/fold_0/best/model.safetensors"))


# What makes a start slow, and no option's help needs.
HEAVY = {"numpy", "cv2", "sklearn", "scipy", "matplotlib", "PIL"}


@pytest.mark.parametrize("program", ["train_torch.py", "train_mlx.py", "training"])
def test_help_waits_for_nothing_heavy(program: str) -> None:
    done = run_without(TORCH_SIDE | MLX_SIDE | HEAVY, program, "--help")
    assert done.returncode == 0, done.stderr
