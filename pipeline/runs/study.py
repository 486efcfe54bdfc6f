"""A study on disk: the file that keeps the trials of a search, and what is told of them.

::

    STUDY/study.db         the study (or journal.log): every trial, its settings, its scores, and whose it is
    STUDY/workers/         a lock for every process that searches; a lock that nobody holds tells of a killed one
    STUDY/search.json      a SearchRecord: the trials as `temi compare` reads them, the best first
    STUDY/best.toml        the settings of the best, for `temi train-heads --config`
"""

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temi.cache.files import LOCK, Lock
from temi.cache.schema import NEIGHBOR_FOLDER
from temi.cache.words import counted
from temi.pipeline.errors import USER_ERRORS, UserError, in_a_line
from temi.pipeline.extras import import_extra
from temi.pipeline.limits import largest_file
from temi.pipeline.runs.records import Setting, Training, TrialRecord
from temi.pipeline.runs.run_folder import SEARCH, STORAGES, STUDY, refuse_cache, refuse_single_run
from temi.pipeline.runs.trials import TRIALS

if TYPE_CHECKING:
    import optuna

BEST = "best.toml"
TRAINED, FAILED = "trained", "failed"  # attributes of a trial in the study
GIVEN_UP, WAITS = "given up", "not trained"  # how a trial without a score is said to have ended; else it failed
REASONS = 3  # that are told of failed trials; search.json has all
FULL = ("disk is full", "disk I/O error", "No space left")  # in what SQLite and Optuna say
TOO_LARGE = "disk I/O error"  # what SQLite says of a file at the limit, too
BUSY = 60  # seconds that a process waits for others to write to an SQLite study


def refuse_run(out: Path) -> None:
    """Raise a UserError where `out` is no place for a study: the folder of a run, of trials or of a cache."""
    refuse_cache(out)
    refuse_single_run(out, "the study")
    if (out / TRIALS).exists():
        raise UserError(f"{out} is the folder of trials; choose another --out for the study")


def remove_study(out: Path) -> None:
    """Remove the study in `out`, and what was kept beside it; whatever else is in the folder stays."""
    refuse_run(out)
    for name in (*STUDY, BEST):
        (out / name).unlink(missing_ok=True)
    for folder in (out / "workers", out / NEIGHBOR_FOLDER):
        shutil.rmtree(folder, ignore_errors=True)


def open_study(out: Path, storage: str, same: Mapping[str, str]) -> "optuna.Study":
    """The study in `out`, begun if there is none, whatever kept it; `same` must be as it was when it began."""
    import_extra("optuna", "search", "temi search")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    there = study_file(out)
    kind = next((kind for kind, name in STORAGES.items() if there and name == there.name), storage)
    if kind not in STORAGES:
        raise UserError(f"there is no storage {kind!r}; choose one of {', '.join(STORAGES)}")
    path = out / STORAGES[kind]
    if (out / SEARCH).exists() and not (path.exists() and path.stat().st_size):
        raise UserError(
            f"{out} holds the {SEARCH} of a search whose {path.name} is gone or empty; restore {path.name}, begin "
            "a new search with another --out, or --overwrite this one"
        )
    with study_lock(out), study_errors(out, any_error=True):
        study = optuna.create_study(
            study_name="temi", storage=_storage(kind, path), direction="maximize", load_if_exists=True
        )
        for name, value in same.items():
            if study.user_attrs.get(name, value) != value:
                raise UserError(f"{out} is a study with {name} of its own; use another --out, or --overwrite it")
            if name not in study.user_attrs:
                study.set_user_attr(name, value)
    return study


def study_file(out: Path) -> Path | None:
    """What keeps the study in `out`."""
    return next((out / name for name in STORAGES.values() if (out / name).exists()), None)


def study_identity(out: Path) -> tuple[int, int] | None:
    """What tells the file of the study in `out` from another of its name; None where there is none."""
    file = study_file(out)
    try:
        found = file.stat() if file else None
    except FileNotFoundError:
        return None
    return (found.st_dev, found.st_ino) if found else None


def study_gone(out: Path) -> UserError:
    """What to tell of a study that is not there any more, though its search runs."""
    return UserError(
        f"{out} was removed, renamed or replaced while its search ran, and what was found since then is lost; leave "
        "the folder where it is and start the search again"
    )


@contextmanager
def study_errors(out: Path, any_error: bool = False) -> Iterator[None]:
    """Turn what Optuna and its database raise of a damaged or removed study into one sentence.

    `any_error`: whatever is raised tells of the study, as nothing but its file is at work.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    raised = (SQLAlchemyError, optuna.exceptions.OptunaError, json.JSONDecodeError)
    try:
        yield
    except Exception as error:
        if isinstance(error, USER_ERRORS) or not (any_error or isinstance(error, raised)):
            raise
        if study_file(out) is None:
            raise study_gone(out) from None
        reason = in_a_line(error.__cause__ or error)
        if any(told in reason for told in FULL):
            if TOO_LARGE in reason and largest_file() < math.inf:
                raise UserError(
                    f"cannot write {study_file(out)}: the file would be larger than allowed here (`ulimit -f`); raise "
                    "the limit, and rerun"
                ) from None
            raise UserError(
                f"cannot write {study_file(out)} ({reason}); make room, and rerun the same command"
            ) from None
        raise UserError(
            f"{study_file(out)} is damaged or cannot be used ({type(error).__name__}: {reason}); restore it, search "
            "with another --out, or --overwrite this one"
        ) from None


def study_lock(out: Path) -> Lock:
    """What a process holds while it asks for trials or writes results."""
    return Lock.wait_for(out / f"study{LOCK}")


def _storage(kind: str, path: Path) -> Any:
    from optuna.storages import JournalStorage, RDBStorage

    if kind == "journal":
        from temi.pipeline.runs.journal import WholeLines

        return JournalStorage(WholeLines(path))
    return RDBStorage(_url(path.resolve()), engine_kwargs={"connect_args": {"timeout": BUSY}})


def _url(path: Path) -> str:
    """A path as Optuna takes it, which fills in a template, and SQLAlchemy, which unquotes it from version 2.1 on."""
    from sqlalchemy.engine import make_url

    name = str(path)
    if make_url("sqlite:///%25").database == "%":
        name = name.replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{name}".replace("{", "{{").replace("}", "}}")


def score_of(training: Training, name: str) -> float:
    """A label-free score by name; where it needs several heads and there is one, the mean confidence."""
    value = getattr(training, name)
    return float(training.mean_confidence if value is None else value)


def rank(trial: "optuna.trial.FrozenTrial") -> tuple[int, float]:
    """Trained trials before the others, the best first; of those given up the ones that came furthest."""
    if TRAINED in trial.user_attrs and trial.value is not None:
        return 0, -trial.value
    return 1, -float(trial.last_step or 0)


def record_of(trial: "optuna.trial.FrozenTrial", settings: Mapping[str, Setting]) -> TrialRecord:
    """A trial of the study, trained with these `settings` of the space, as ``search.json`` has it."""
    trained = tuple(Training(**one) for one in trial.user_attrs.get(TRAINED, ()))
    reason = trial.user_attrs.get(FAILED) or {
        "PRUNED": f"{GIVEN_UP} at step {trial.last_step}: others did better",
        "RUNNING": f"{WAITS} to its end yet",
    }.get(trial.state.name, f"{WAITS} yet")
    return TrialRecord(
        trial=f"trial-{trial.number:03d}",
        settings=dict(settings),
        training=trained[0] if trained else None,
        seeds=trained,
        stopped=None if trained else reason,
    )


def ended(trials: Sequence[TrialRecord]) -> str:
    """How many of `trials` were trained, given up, not trained yet, and failed, with each reason once."""
    stopped = [trial.stopped or WAITS for trial in trials if trial.training is None]
    early, owed = ([one for one in stopped if one.startswith(start)] for start in (GIVEN_UP, WAITS))
    failed = [one for one in stopped if one not in early + owed]
    reasons = list(dict.fromkeys(in_a_line(one) for one in failed))
    more = [counted(len(reasons) - REASONS, "more reason")] if len(reasons) > REASONS else []
    counts = {
        "trained to their end": len(trials) - len(stopped),
        "given up by halving": len(early),
        "not trained yet": len(owed),
        f"failed ({'; '.join([*reasons[:REASONS], *more])})": len(failed),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "none"


def hopeless(trials: Sequence[TrialRecord]) -> bool:
    """Whether none of `trials` was trained, and none is to be trained yet."""
    return bool(trials) and not any(trial.training or (trial.stopped or WAITS).startswith(WAITS) for trial in trials)
