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
    """A line that names the test images that cannot be read, which their rows of the submission survive.

    They are those of the table `audit`, where it exists, that a second look cannot read either; else every test image
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
        suspects = [place for place, name in enumerate(test.ids) if name in named]
    found = readable.faults_of([test.paths[i] for i in suspects], Images(0, data.pixel_limit), data.workers)
    errors = {place: text for place, text in zip(suspects, found, strict=True) if text}
    if errors and (data.on_bad_test_image == "error" or len(errors) == len(test.ids)):
        raise DataError(
            f"test images: {len(errors)} of {len(test.ids)} cannot be read, the first: {errors[min(errors)]}"
        )
    if not errors:
        return []
    return [
        f"{counted(len(errors), 'test image')} cannot be read; "
        f"{prior.warning(errors, len(test.ids), 'the class prior')}"
    ]
