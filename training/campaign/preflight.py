"""What prediction will need, looked at before the first epoch: test images, sample submission, and that they fit."""

from __future__ import annotations

from pathlib import Path

from config.errors import DataError
from config.schema import Settings
from config.text import counted
from data import check as readable
from data import csvfile, sources
from data.audit import actions
from data.cache.images import Images
from infer.io import prior, submission, submission_writer

_DAMAGE = ("unreadable", "truncated", "empty")  # the findings of an audit that say so


def check(settings: Settings, submissions: Path) -> list[str]:
    """Lines on what will be predicted and how the submission, a file in `submissions`, will look.

    Raises what predicting would raise after the training: `DataError` for a test table, an image or a sample submission
    that does not fit, `ConfigError` for an `ensemble.positive` that is no class or a folder that cannot be written.
    """
    data = settings.data
    test, sample = sources.test_split(data), sources.sample_submission(data)
    if test is None:
        return [f"no submission will be written: {data.root} has no test images"]
    submission.prepare(submissions)
    classes, target = actions.load(data).table.class_names, data.target_column
    planned = submission_writer.plan(classes, (), test.ids, test.id_column, target, sample, settings.ensemble.positive)
    form = f"in the form of {sample.name}" if sample else "without a sample submission"
    return [f"to predict: {counted(len(test.ids), 'image')} {form}", *filter(None, [planned.layout.note])]


def images(settings: Settings, audit: Path) -> list[str]:
    """A line about the test images that cannot be read; the submission has rows for them all the same.

    Where the table `audit` exists, the damaged images in it are decoded again; else every test image
    is decoded. Raises `DataError` for all where there is no readable one, or where one is to stop the prediction.
    """
    data = settings.data
    test = sources.test_split(data)
    if test is None:
        return []
    suspects = list(range(len(test.ids)))
    if audit.exists():
        rows = [row.cells for row in csvfile.read(audit, ())] if len(csvfile.read_lines(audit)) > 1 else []
        named = {row["ID"] for row in rows if row["split"] == "test" and row["finding"] in _DAMAGE}
        suspects = [row for row, name in enumerate(test.ids) if name in named]
    faults = readable.faults_of([test.paths[row] for row in suspects], Images(0, data.pixel_limit), data.workers)
    errors = {row: fault for row, fault in zip(suspects, faults, strict=True) if fault}
    if errors and (data.on_bad_test_image == "error" or len(errors) == len(test.ids)):
        raise DataError(
            f"test images: {len(errors)} of {len(test.ids)} cannot be read, the first: {errors[min(errors)]}"
        )
    if not errors:
        return []
    warning = prior.warning(errors, len(test.ids), "the class prior")
    return [f"{counted(len(errors), 'test image')} cannot be read; {warning}"]
