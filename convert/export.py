"""One source to its artefacts: built once, written in each format and precision, compared on images, reported."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import convert
from config.errors import ConfigError, ConvertError, UnsupportedOperation
from config.text import counted
from convert import command
from convert.graph import torch_ensemble, torch_network
from convert.place import atomic_artefact, refuse_existing
from convert.source import Source, one_image, read
from convert.verification import pictures, report, sensitivity, speed, verify
from convert.verification.precision import PRECISIONS, lossy, pairs
from data.sources import Table
from infer import runtimes
from infer.runtimes import Predictor

OPTIONS = ("batch", "calibrate", "input", "macos", "opset", "single_input", "sweep")  # of a format or a precision


class Job(NamedTuple):
    """One artefact to write."""

    target: str
    precision: str
    out: Path


def names(source: Source, kinds: Sequence[tuple[str, str]], out: Path | None) -> list[Job]:
    """The jobs with their paths: `fold_0/best` becomes `fold_0_best.onnx`, `fold_0_best_fp16.mlpackage`, ...

    Beside the checkpoint's folder, or in the folder `out`.
    """
    folder = out or source.folder
    return [
        Job(t, p, folder / f"{source.stem}{'' if p == 'fp32' else f'_{p}'}{convert.TARGETS[t].suffix}")
        for t, p in kinds
    ]


class Refused(ConvertError):
    """A precision that a network cannot keep the limits with."""


class Exporter:
    """A source with its network and the images that its jobs need; images are read when first wanted."""

    def __init__(self, source: Source, options: argparse.Namespace):
        self.source, self.options = source, options
        self.network: torch_network.Network = torch_ensemble.build(source)
        self._calibration: list[pictures.Pixels] | None = None

    def calibration(self) -> list[pictures.Pixels]:
        """Batches of calibration images."""
        if self._calibration is None:
            table = pictures.calibration(self.options.calibrate, self.source)
            self._calibration = list(pictures.batches(table, self.source.card))
            self._images = tuple(np.concatenate(parts) for parts in zip(*self._calibration, strict=True))
            self._labels = pictures.labels(table, self.source.card)
            self._before = torch_network.once(self.network, *self._images)
        return self._calibration

    def write(self, job: Job, out: Path, float_layers: tuple[str, ...] = (), overwrite: bool = True) -> None:
        """Write one artefact, whatever it is worth."""
        module, o = convert.load(job.target), self.options
        if job.target == "onnx":
            module.write(
                self.network,
                self.source.card,
                out,
                job.precision,
                overwrite,
                float_input=o.input == "float",
                calibration=self.calibration() if job.precision == "int8" else (),
                float_layers=float_layers,
                probabilities=self.source.ensemble is not None,
                opset=o.opset,
            )
        else:
            batches = tuple(dict.fromkeys(o.batch))
            module.write(self.network, self.source.card, out, job.precision, batches, overwrite, o.macos, float_layers)

    def make(self, job: Job) -> None:
        """Write one artefact; int8, w8 and palettes within their limits on the calibration images.

        Layers that lose most stay in float until the limits hold; `Refused` where they do not with half of them.
        """
        if not lossy(job.precision) or not self._calibrated(job):
            self.write(job, job.out, overwrite=self.options.overwrite)
        else:
            with atomic_artefact(job.out, self.options.overwrite, also=(".data",)) as path:
                self.write(job, path)
                try:
                    self._keep_limits(job, path)
                except UnsupportedOperation as error:
                    print(f"{job.out.name}: its limits are not checked ({error})")
        print(f"wrote {job.out} ({job.precision}, {verify.size(job.out) / 1e6:.1f} MB)")

    def mixture(self, job: Job, artefact: Path) -> contextlib.AbstractContextManager[sensitivity.Mixture]:
        """The layers of the job's artefact, compressed or not, in any mixture."""
        calibration = self.calibration() if job.target == "onnx" else ()
        card, macos = self.source.card, self.options.macos
        return sensitivity.mixture(self.network, card, artefact, job.precision, calibration, macos)

    def _calibrated(self, job: Job) -> bool:
        """Whether there are images to hold the job's artefact against; int8 and --sweep cannot go without."""
        if self.options.batch and job.target == "coreml":
            return False
        try:
            self.calibration()
        except ConvertError as error:
            if self.options.calibrate or self.options.sweep or job.precision == "int8":
                raise
            print(f"{job.out.name}: its limits are not checked ({error})")
            return False
        return True

    def _faults(self, job: Job, path: Path, predictor: Predictor | None = None) -> tuple[str, ...]:
        """The limits that `predictor`, or else the artefact at `path`, does not keep on the calibration images."""
        runtime = "mil_reference" if job.target == "coreml" else "onnx"
        with contextlib.closing(predictor or runtimes.open(path, runtime)) as opened:
            rows = [opened.logits(*batch) for batch in self.calibration()]
        measured = verify.Measured(runtime, np.concatenate(rows), None)
        return verify.measure(verify.Artefact(path, job.precision), measured, self._before, 0.0, self._labels).faults

    def _keep_limits(self, job: Job, path: Path) -> None:
        """Rewrite the artefact at `path` with layers in float, as few as it takes; see `make`."""
        faults = self._faults(job, path)
        if not faults and not self.options.sweep:
            return
        count, size = len(self._before), verify.size(path)
        verdict = "; ".join(faults) or "within the limits"
        print(f"{job.out.name}: {verdict} on {counted(count, 'calibration image')}; each layer is measured alone now")
        with self.mixture(job, path) as mixed:
            losses = sensitivity.rank(
                self.network, mixed, tuple(images[: sensitivity.IMAGES] for images in self._images)
            )

            def holds(float_layers: tuple[str, ...]) -> bool:
                nonlocal faults
                if float_layers:
                    compressed = [layer for layer in mixed.layers if layer not in float_layers]
                    faults = self._faults(job, path, mixed.open(compressed))
                return not faults

            layers = sensitivity.layers_in_float(losses, holds)
        with atomic_artefact(job.out.with_name(f"{job.out.name}.sweep.md"), overwrite=True) as table:
            table.write_text(sensitivity.table(losses, layers), encoding="utf-8")
        message = f"{job.out.name}: {len(layers)} of {len(losses)} layers in float"
        if not faults and layers:
            first = path.with_name(f"all{path.suffix}")
            path.rename(first)
            self.write(job, path, layers)
            faults = self._faults(job, path)
        if faults:
            raise Refused(
                f"{message} do not suffice ({'; '.join(faults)}, on {counted(count, 'calibration image')}): "
                f"{job.precision} is refused for {self.source.card.model}; worst: {sensitivity.worst(losses)}"
            )
        grown = f"{size / 1e6:.1f} to {verify.size(path) / 1e6:.1f} MB"
        if layers and job.target == "onnx":
            before, after = speed.in_turn([first, path], 1)
            grown += f" and {before:.1f} to {after:.1f} ms an image"
        print(f"{message} keep the limits, {grown}; worst: {sensitivity.worst(losses)}")


def artefacts(
    path: str | os.PathLike[str],
    to: str | Sequence[str],
    precision: str | Sequence[str],
    options: Mapping[str, Any],
) -> list[Path]:
    """Implements `convert.convert`, whose other arguments are `options`."""
    arguments = command.parser().parse_args(["--", os.fspath(path)])
    unknown = [name for name in options if name not in (*OPTIONS, "out", "overwrite", "verify")]
    if unknown:
        raise TypeError(f"convert: unknown option {unknown[0]!r}; there are {', '.join(OPTIONS)}")
    targets, precisions = ([each] if isinstance(each, str) else list(each) for each in (to, precision))
    for wanted, known in ((targets, list(convert.TARGETS)), (precisions, list(PRECISIONS))):
        wrong = [name for name in wanted if name not in known]
        if wrong or not wanted:
            raise ConfigError(f"convert: found {', '.join(wrong) or 'nothing'}; there are {', '.join(known)}")
    paths = {name: Path(options[name]) for name in ("out", "verify", "calibrate") if options.get(name) is not None}
    vars(arguments).update({**options, **paths}, to=targets, precision=precisions)
    kinds = pairs(targets, precisions)
    for target in targets:
        convert.require(target)
    return run(arguments, kinds)


def run(options: argparse.Namespace, kinds: Sequence[tuple[str, str]]) -> list[Path]:
    """Write the (target, precision) pairs `kinds` of all sources that `options.path` names; the artefacts' paths.

    Raises `VerificationFailed` where one is outside the limits.
    """
    if any(number < 1 for number in options.batch):
        raise ConfigError(f"--batch {' '.join(map(str, options.batch))}: batches hold at least one image")
    sources = read(options.path)
    if options.single_input:
        sources = [one_image(source) for source in sources]
        for source in (source for source in sources if source.resized):
            size, sizes = source.card.preprocessing.size, ", ".join(str(prep.size) for prep in source.resized)
            print(
                f"{source.path}: its members' pixels ({sizes}) are resized from the one image of {size}, not from the "
                "file: near the runner's, not equal"
            )
    jobs = [names(source, kinds, options.out) for source in sources]
    for job in (job for some in jobs for job in some):
        refuse_existing(job.out, options.overwrite)
    for target, precision in dict.fromkeys((t, p) for t in options.to for p in options.precision):
        if (target, precision) not in kinds:
            print(f"{target} has no {precision}: left out")
    failed = [fault for source, some in zip(sources, jobs, strict=True) for fault in export(source, some, options)]
    if failed:
        raise verify.VerificationFailed("; ".join(failed))
    return [job.out for some in jobs for job in some]


def export(source: Source, jobs: Sequence[Job], options: argparse.Namespace) -> list[str]:
    """Write and verify all jobs of a source; returns what is outside the limits, one sentence each."""
    if options.sweep and not any(lossy(job.precision) for job in jobs):
        raise ConvertError("--sweep is for int8, w8 and palettes; add one of them to --precision")
    if options.sweep and options.batch:
        raise ConvertError("--sweep measures packages with an image input; leave --batch out")
    with contextlib.ExitStack() as held:
        images = None
        if options.verify is not None:
            images = held.enter_context(pictures.opened(options.verify, source.card))
        exporter = Exporter(source, options)
        if options.sweep or any(job.precision == "int8" for job in jobs):
            exporter.calibration()
        refused, written = [], []
        for job in jobs:
            try:
                exporter.make(job)
                written.append(job)
            except Refused as error:
                refused.append(str(error))
        _print_speed(exporter, written)
        if not written or images is None:
            return refused
        artefacts = [verify.Artefact(job.out, job.precision) for job in written]
        comparisons = verify.compare(exporter.source, exporter.network, artefacts, images)
        for comparison in comparisons:
            print(report.line(comparison))
        print(f"wrote {report.write(written[0].out.parent, comparisons)}")
        return refused + [_fault(exporter, written, c, images) for c in comparisons if c.faults]


def _print_speed(exporter: Exporter, jobs: Sequence[Job]) -> None:
    """Say whether int8 pays on this machine, against the fp32 file, written for that where it is not wanted."""
    for job in (each for each in jobs if each.precision == "int8"):
        plain = next((each.out for each in jobs if (each.target, each.precision) == ("onnx", "fp32")), None)
        with tempfile.TemporaryDirectory() as folder:
            if plain is None:
                plain = Path(folder) / "fp32.onnx"
                exporter.write(job._replace(precision="fp32"), plain)
            print(speed.line(plain, job.out))


def _fault(exporter: Exporter, jobs: Sequence[Job], comparison: verify.Comparison, images: Table) -> str:
    """The faults of an artefact, and the layers where int8 and palettes lose most."""
    text = f"{comparison.artefact} on {comparison.runtime}: {', '.join(comparison.faults)}"
    if not lossy(comparison.precision) or math.isnan(comparison.torch_error):  # the latter gave no logits
        return text
    (job,) = (job for job in jobs if job.out.name == comparison.artefact)
    some = next(iter(pictures.batches(images, exporter.source.card)))
    with exporter.mixture(job, job.out) as mixed:
        losses = sensitivity.rank(exporter.network, mixed, some)
    return f"{text}; the layers that lose most: {sensitivity.worst(losses)}"
