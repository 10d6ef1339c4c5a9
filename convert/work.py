"""One source to its artefacts: built once, written in each format and precision, compared on images, reported."""

from __future__ import annotations

import argparse
import contextlib
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import convert
from config.errors import ConvertError
from convert import pictures, report, sensitivity, torch_ensemble, torch_graph, verify
from convert.place import whole
from convert.precision import lossy
from convert.source import Source
from data.sources import Table
from infer import predictors

if TYPE_CHECKING:
    from convert.__main__ import Job


class Workshop:
    """A source with its network and the images that its jobs need; images are read when first wanted."""

    def __init__(self, source: Source, options: argparse.Namespace):
        self.source, self.options = source, options
        self.network: torch_graph.Network = torch_ensemble.build(source)
        self._calibration: list[pictures.Pixels] | None = None

    def calibration(self) -> list[pictures.Pixels]:
        """Batches of calibration images."""
        if self._calibration is None:
            table = pictures.calibration(self.options.calibrate, self.source)
            self._calibration = list(pictures.batches(table, self.source.card))
            self._images = tuple(np.concatenate(parts) for parts in zip(*self._calibration, strict=True))
            self._labels = pictures.labels(table, self.source.card)
        return self._calibration

    def write(self, job: Job, out: Path, float_layers: tuple[str, ...] = ()) -> None:
        """Write one artefact."""
        module, o = convert.load(job.target), self.options
        if job.target == "onnx":
            module.write(
                self.network,
                self.source.card,
                out,
                job.precision,
                o.overwrite,
                float_input=o.input == "float",
                calibration=self.calibration() if job.precision == "int8" else (),
                float_layers=float_layers,
                probabilities=self.source.ensemble is not None,
                opset=o.opset,
            )
        else:
            batches = tuple(dict.fromkeys(o.batch))
            module.write(
                self.network, self.source.card, out, job.precision, batches, o.overwrite, o.macos, float_layers
            )

    def rank(self, job: Job, images: pictures.Pixels) -> list[sensitivity.Loss]:
        """The job's layers, the one that loses most first."""
        calibration = self.calibration() if job.target == "onnx" else ()
        return sensitivity.rank(self.network, self.source.card, job.target, job.precision, images, calibration)

    def sweep(self, job: Job) -> tuple[str, ...]:
        """The layers to keep in float so that the limits hold on the calibration images; writes the table of all."""
        self.calibration()
        losses = self.rank(job, _few(self._images))
        before = torch_graph.once(self.network, *self._images)

        def holds(layers: tuple[str, ...]) -> bool:
            with tempfile.TemporaryDirectory() as folder:
                tried = verify.Artefact(Path(folder) / job.out.name, job.precision)
                self.write(job, tried.path, layers)
                runtime = "mil_reference" if job.target == "coreml" else "onnx"
                with contextlib.closing(predictors.open(tried.path, runtime)) as opened:
                    said = verify.Measured(runtime, opened.logits(*self._images), None)
                return not verify.measure(tried, said, before, 0.0, self._labels).faults

        layers = sensitivity.kept(losses, holds)
        place = job.out.with_name(f"{job.out.name}.sweep.md")
        with whole(place, overwrite=True) as path:
            path.write_text(sensitivity.table(losses, layers), encoding="utf-8")
        print(
            f"{job.out.name}: {len(layers)} of {len(losses)} layers stay in float; worst: {sensitivity.worst(losses)}"
        )
        return layers


def do(source: Source, jobs: Sequence[Job], options: argparse.Namespace) -> list[str]:
    """Write and verify all jobs of a source; returns what is outside the limits, one sentence each."""
    _check(jobs, options)
    with contextlib.ExitStack() as held:
        images = None
        if options.verify is not None:
            images = held.enter_context(pictures.opened(options.verify, source.card))
        shop = Workshop(source, options)
        if options.sweep or any(job.precision == "int8" for job in jobs):
            shop.calibration()
        for job in jobs:
            shop.write(job, job.out, shop.sweep(job) if options.sweep and lossy(job.precision) else ())
            print(f"wrote {job.out} ({job.precision}, {verify.size(job.out) / 1e6:.1f} MB)")
        return [] if images is None else _verified(shop, jobs, images)


def _check(jobs: Sequence[Job], options: argparse.Namespace) -> None:
    """`ConvertError` for a wish that is found impossible without any work."""
    if options.sweep and not any(lossy(job.precision) for job in jobs):
        raise ConvertError("--sweep is for int8, w8 and palettes; add one of them to --precision")
    if options.sweep and options.batch:
        raise ConvertError("--sweep measures packages with an image input; leave --batch out")


def _verified(shop: Workshop, jobs: Sequence[Job], images: Table) -> list[str]:
    artefacts = [verify.Artefact(job.out, job.precision) for job in jobs]
    comparisons = verify.compare(shop.source, shop.network, artefacts, images)
    for comparison in comparisons:
        print(report.line(comparison))
    print(f"wrote {report.write(jobs[0].out.parent, comparisons)}")
    return [_fault(shop, jobs, c, images) for c in comparisons if c.faults]


def _fault(shop: Workshop, jobs: Sequence[Job], comparison: verify.Comparison, images: Table) -> str:
    """What is wrong with an artefact, and where int8 and palettes lose it."""
    text = f"{comparison.artefact} on {comparison.runtime}: {', '.join(comparison.faults)}"
    if not lossy(comparison.precision) or math.isnan(comparison.torch_error):  # the latter gave no logits
        return text
    (job,) = (job for job in jobs if job.out.name == comparison.artefact)
    some = next(iter(pictures.batches(images, shop.source.card)))
    return f"{text}; the layers that lose most: {sensitivity.worst(shop.rank(job, some))}"


def _few(images: pictures.Pixels) -> pictures.Pixels:
    return tuple(one[: sensitivity.IMAGES] for one in images)
