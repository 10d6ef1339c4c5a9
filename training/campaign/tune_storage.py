"""The database of a search: opened by its URL, with heartbeats, its errors as one line."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from backends import installed
from config.errors import CheckpointError, ConfigError

_BEAT, _GRACE = 60, 240  # seconds between heartbeats of a trial, and without one until the trial counts as dead


def opened(storage: str) -> optuna.storages.RDBStorage:
    """The database of a URL, with $VARIABLES expanded. Trials whose process sends no heartbeat are queued again.

    Raises `ConfigError` where it cannot be used; its text has the names of variables, which may be secret.
    """
    try:
        url = sqlalchemy.make_url(os.path.expandvars(storage))
        if url.drivername == "postgresql" and not installed("psycopg"):
            url = url.set(drivername="postgresql+pg8000")
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            return optuna.storages.RDBStorage(
                url.render_as_string(hide_password=False),
                engine_kwargs={"pool_pre_ping": True},  # servers close connections that wait for a long epoch
                heartbeat_interval=_BEAT,
                grace_period=_GRACE,
                heartbeat_stale_trial_callback=lambda study, dead: study.enqueue_trial(dead.params),
            )
    except (SQLAlchemyError, StorageInternalError, ImportError) as error:
        raise ConfigError(
            f"tune.storage: {storage} cannot be used ({_reason(error)}); give a URL that SQLAlchemy knows and whose "
            'driver is installed (for PostgreSQL: pip install -e ".[postgres]"), or null for a file'
        ) from error


def fail_stale(study: optuna.Study) -> None:
    """Queue trials of other hosts again whose heartbeat stopped."""
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        optuna.storages.fail_stale_trials(study)


@contextmanager
def lasting(storage: str) -> Iterator[None]:
    """Raise errors of the database while it is in use as a `CheckpointError`."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, UnboundLocalError) as error:
        # Where the end of a trial cannot be written, Optuna 5.0 raises an UnboundLocalError on top of the error.
        fault = error.__context__ if isinstance(error, UnboundLocalError) else error
        if not isinstance(fault, SQLAlchemyError | StorageInternalError):
            raise
        raise CheckpointError(
            f"tune.storage: {storage} does not answer any more ({_reason(fault)}); trials that ended are kept, start "
            "the same command again when it does"
        ) from error


def _reason(error: Exception) -> str:
    """The first line of the database driver's error, which Optuna hides behind a message of its own."""
    return str(error.__cause__ or error).strip().splitlines()[0]
