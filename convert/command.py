"""The options of `python -m convert` and their help."""

from __future__ import annotations

from pathlib import Path

import convert
from config.program import entry
from config.program.parser import Parser
from convert.verification.precision import PRECISIONS

MACOS = (13, 14, 15)
CALIBRATION = 128
DEMO = Path("the demo's digits")
_EPILOG = "Exit codes: 0 done, 1 an error, 2 a wrong command line, 4 an artefact outside the limits of --verify."


def parser() -> Parser:
    """The parser; no framework is imported."""
    built = Parser(
        prog="python -m convert",
        description="Convert checkpoints of either engine to ONNX and Core ML, and prove that they answer alike.",
        epilog=_EPILOG,
    )
    entry.add_options(built)
    add = built.add_argument
    add(
        "path",
        type=Path,
        metavar="PATH",
        help="a checkpoint folder such as RUN/fold_0/best, a run (each fold's best), an ensemble's YAML file, a "
        "model's name such as convnext_base, hf:USER/NAME, or a weights file",
    )
    add("--to", nargs="+", choices=tuple(convert.TARGETS), default=[], help="the formats to write")
    precisions = "; ".join(f"{name}: {p.about} ({', '.join(p.targets)})" for name, p in PRECISIONS.items())
    add("--precision", nargs="+", choices=tuple(PRECISIONS), default=["fp32"], help=f"{precisions} (default: fp32)")
    add("--out", type=Path, metavar="DIR", help="the folder to write into (default: the one that PATH lies in)")
    add("--overwrite", action="store_true", help="replace artefacts of the same name")
    add(
        "--verify",
        type=Path,
        nargs="?",
        const=DEMO,
        metavar="IMAGES",
        help="compare every artefact with the checkpoint on these images: a folder, class folders or a CSV (without a "
        "word: the demo's digits); writes verify.json and verify.md beside the artefacts",
    )
    _add_int8(built)
    _add_formats(built)
    _add_distil(built)
    return built


def _add_int8(parser: Parser) -> None:
    add = parser.add_argument_group("int8, w8 and palettes").add_argument
    add(
        "--calibrate",
        type=Path,
        metavar="IMAGES",
        help=f"at most {CALIBRATION} of these images, drawn by class, fix the ranges of int8; on them int8, w8 and "
        "palettes are held to their limits: layers that lose most stay in float, and a precision that half of them do "
        "not suffice for is refused (default: the run's own training images)",
    )
    add(
        "--sweep",
        action="store_true",
        help="measure each layer alone and write the table of all where the limits hold, too; slow",
    )


def _add_formats(parser: Parser) -> None:
    add = parser.add_argument_group("formats").add_argument
    add(
        "--input",
        choices=("uint8", "float"),
        default="uint8",
        help="ONNX: uint8 [N, S, S, 3] (the default), or float32 [N, 3, S, S] in [0, 1]; both are normalised inside",
    )
    add(
        "--opset",
        type=int,
        choices=range(17, 24),
        default=18,
        metavar="17...23",
        help="ONNX: the operator set; older runtimes need a lower one (default: 18, ONNX Runtime 1.16; 17 is refused "
        "where the network needs 18)",
    )
    add(
        "--batch",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help="Core ML: a float32 tensor input [N, S, S, 3] in [0, 255] for each N, in place of one image",
    )
    add(
        "--single_input",
        action="store_true",
        help="an ensemble whose members want several sizes or crops: one image input, resized inside, in place of one "
        "input for each; its pixels are not quite the runner's, so that fp32 is held to the limits of fp16",
    )
    add("--macos", type=int, choices=MACOS, default=14, help="Core ML: the oldest macOS to run on (default: 14)")


def _add_distil(parser: Parser) -> None:
    add = parser.add_argument_group("one small student in place of an ensemble").add_argument
    add(
        "--distil",
        type=Path,
        metavar="DIR",
        help="write the ensemble's answers to its training images and a student's recipe into this new folder",
    )
    add("--student", default="mobilenetv3_large_100", metavar="MODEL", help="its model (default: %(default)s)")
