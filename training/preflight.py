"""What prediction will need, looked at before the first epoch: test images, sample submission, and that they fit."""

from __future__ import annotations

from config.schema import Settings
from data import sources
from data.audit import actions
from infer import submission


def check(settings: Settings) -> list[str]:
    """Lines on what will be predicted and how the submission will look; none without test images.

    Raises what predicting would raise after the training: `DataError` for a test table, an image or a sample submission
    that does not fit, `ConfigError` for an `ensemble.positive` that is no class.
    """
    test, sample = sources.test_split(settings.data), sources.sample_submission(settings.data)
    if test is None:
        return []
    classes, positive = actions.load(settings.data).table.class_names, settings.ensemble.positive
    if sample is None:
        submission.plain_layout(test.ids, classes, positive=positive)
        return [f"to predict: {len(test.ids)} images, without a sample submission"]
    layout = submission.sample_layout(sample, classes, test.id_column, positive=positive, ids=test.ids)
    submission.align(test.ids, layout, str(sample))
    return [f"to predict: {len(test.ids)} images in the form of {sample.name}", *filter(None, [layout.note])]
