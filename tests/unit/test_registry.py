"""Names of models as people write them, the recorded facts against the installed timm, and `python -m models`."""

from __future__ import annotations

import dataclasses

import pytest
import timm
import torch

from config.errors import ConfigError
from models import defaults, record_timm, registry
from models.__main__ import main

# The reference list: what is written, timm's full name, image size.
REFERENCE = [
    ("tf_efficientnetv2_l.in21k_ft_in1k", "tf_efficientnetv2_l.in21k_ft_in1k", 384),
    ("convnext_large.fb_in22k_ft_in1k_384", "convnext_large.fb_in22k_ft_in1k_384", 384),
    ("swin_large_patch4_window12_384.ms_in22k_ft_in1k", "swin_large_patch4_window12_384.ms_in22k_ft_in1k", 384),
    ("swin_base_patch4_window12_384", "swin_base_patch4_window12_384.ms_in22k_ft_in1k", 384),
    ("tf_efficientnet_b7.ns_jft_in1k", "tf_efficientnet_b7.ns_jft_in1k", 600),
    ("convnext_base.fb_in22k_ft_in1k", "convnext_base.fb_in22k_ft_in1k", 224),
    ("convnext_base", "convnext_base.fb_in22k_ft_in1k", 224),
    ("convnext_base_384", "convnext_base.fb_in22k_ft_in1k_384", 384),
    ("resnet152d.ra2_in1k", "resnet152d.ra2_in1k", 256),
    ("vit_base_patch16_224.augreg_in21k_ft_in1k", "vit_base_patch16_224.augreg_in21k_ft_in1k", 224),
    ("efficientnet_b4.ra2_in1k", "efficientnet_b4.ra2_in1k", 320),
    ("tf_efficientnetv2_b3", "tf_efficientnetv2_b3.in21k_ft_in1k", 240),
]


@pytest.mark.parametrize(("written", "name", "size"), REFERENCE)
def test_reference_models_carry_timms_preprocessing(written: str, name: str, size: int) -> None:
    spec = registry.get(written)
    config = timm.models.get_pretrained_cfg(name)
    assert (spec.name, spec.preprocessing.size) == (name, size)
    assert spec.preprocessing.size == config.input_size[1]
    assert (spec.preprocessing.mean, spec.preprocessing.std) == (tuple(config.mean), tuple(config.std))
    assert (spec.preprocessing.interpolation, spec.preprocessing.crop_pct) == (config.interpolation, config.crop_pct)
    assert spec.hub_id == f"timm/{name}"
    assert spec.hub_classes == config.num_classes
    assert spec.test_size == (config.test_input_size or [0, 0])[1]
    assert registry.get(name) == registry.get(f"timm/{name}") == spec
    assert registry.engines(spec) == {"torch": "", "mlx": ""}


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_tables_are_those_of_the_installed_timm(family: str) -> None:
    table = registry._table(family)
    assert set(table) == set(timm.list_models(module=registry.FAMILIES[family].timm_module))
    for arch, row in table.items():
        cls, args = record_timm.constructor(arch)
        assert (row["class"], row["args"]) == (cls, args), arch
        pretrained = {name.partition(".")[2] for name in timm.list_pretrained(f"{arch}.*")}
        assert {tag for tag, facts in row["tags"].items() if tag and facts.get("pretrained")} == pretrained, arch


@pytest.mark.parametrize("arch", ["convnext_atto", "swin_tiny_patch4_window7_224", "tf_efficientnetv2_b3"])
def test_parameter_counts_are_timms(arch: str) -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in timm.create_model(arch).parameters())
    assert registry.get(arch).parameters == count


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("convnxt_base", "convnext_base"),
        ("convnext_base.nope", "fb_in22k_ft_in1k"),
        ("convnext_base_385", "convnext_base"),
        ("", "models list"),
    ],
)
def test_unknown_names_come_with_the_nearest(wrong: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        registry.get(wrong)


def test_options_change_the_spec_and_rebuild_it() -> None:
    spec = registry.get("timm/convnext_atto", num_classes=3, image_size=64, drop_path_rate=0.1, in_chans=None)
    assert (spec.num_classes, spec.preprocessing.size, spec.drop_path_rate, spec.in_chans) == (3, 64, 0.1, 3)
    assert registry.get(spec.name, num_classes=3, **spec.options) == spec
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.arch = "other"  # type: ignore[misc]


def test_shell_patterns_select_architectures_by_name() -> None:
    assert registry.names("convnext_at*") == ["convnext_atto", "convnext_atto_ols", "convnext_atto_rms"]
    assert registry.names("resnet18") == ["resnet18"]
    assert registry.names("nothing*") == []


@pytest.mark.parametrize(("name", "expected"), [("tf_efficientnet_b7", 8), ("convnext_base_384", 12), ("resnet18", 16)])
def test_batch_follows_the_image_size(name: str, expected: int) -> None:
    assert defaults.batch_size(registry.get(name)) == expected
    assert defaults.batch_size(registry.get(name, image_size=32)) == 64
    assert defaults.batch_size(registry.get(name, image_size=480)) == 8


def test_every_model_has_a_sensible_rate() -> None:
    assert all(1e-6 < defaults.learning_rate(registry.get(a)) <= 1e-3 for a in registry.names())
    assert defaults.learning_rate(registry.get("convnext_large")) < defaults.learning_rate(
        registry.get("convnext_base")
    )


def test_list_prints_name_parameters_size_engines_and_license(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "convnext_base"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.startswith("name")
    assert row.split()[:4] == ["convnext_base.fb_in22k_ft_in1k", "88.6", "M", "224"]
    assert "torch, MLX" in row
    assert row.endswith("apache-2.0")


def test_list_matches_full_names_where_the_pattern_has_a_dot(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "convnext_base.*_384"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == [
        f"convnext_base.{t}" for t in registry.tags("convnext_base") if t.endswith("_384")
    ]


def test_show_prints_preprocessing_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "convnext_base_384"]) == 0
    out = capsys.readouterr().out
    for part in ("384 pixels", "0.485, 0.456, 0.406", "bicubic", "learning rate", "batch size     12", "timm/convnext"):
        assert part in out


def test_list_and_show_say_which_engine_runs_a_model_and_why_not_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "mixnet_s"]) == main(["list", "mlxim/resnet18"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if not line.startswith("name ")]
    assert [row[4:5] for row in rows] == [["torch"], ["MLX"]]
    assert main(["show", "mixnet_s"]) == main(["show", "mlxim/vit_base_patch16_224.swag_lin"]) == 0
    out = capsys.readouterr().out
    for part in (
        "torch (MLX has no port of block_args",
        "MLX (mlx-image",
        "huggingface.co/mlx-vision/vit_base",
        "3e-05",
    ):
        assert part in out


def test_an_unknown_name_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "convnxt_base"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
