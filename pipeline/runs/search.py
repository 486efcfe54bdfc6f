"""A search over settings: Optuna says what to try, packs of trials train in one stack, label-free scores are told.

Any number of processes share a study. What a killed one had begun is trained again, from its start, by whoever asks
next. `study` has what is on the disk. Labels are not read.
"""

import os
import uuid
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temi.cache import EmbeddingCache
from temi.cache.files import LOCK, Lock, make_folder, write_atomic
from temi.cache.schema import NEIGHBOR_FOLDER
from temi.pipeline.config import Config, dump_toml
from temi.pipeline.device import pick_device
from temi.pipeline.errors import UserError
from temi.pipeline.extras import import_extra
from temi.pipeline.features.features import Features
from temi.pipeline.plugins import Plugin
from temi.pipeline.progress import Progress, quiet
from temi.pipeline.runs.checks import check_settings, training_rows
from temi.pipeline.runs.footprint import check_memory
from temi.pipeline.runs.pack import Candidate, train_pack
from temi.pipeline.runs.records import SearchRecord, Setting, Training, write_record
from temi.pipeline.runs.run_folder import SEARCH
from temi.pipeline.runs.space import Point, Range, Space, check_space, dump_space, ends, point_config
from temi.pipeline.runs.study import (
    BEST,
    FAILED,
    TRAINED,
    open_study,
    rank,
    record_of,
    refuse_run,
    score_of,
    study_errors,
    study_file,
    study_gone,
    study_identity,
    study_lock,
)
from temi.pipeline.runs.trials import as_overrides, flat_settings, group_trials

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("tpe", "random", "cmaes")
SCORES = ("head_agreement", "stability", "neighbor_consistency", "linear_accuracy", "mean_confidence")
REDUCTION = 3  # one of so many goes on at a rung
WORKER = "worker"  # attribute of a trial in the study: the process that trains it


@dataclass(frozen=True)
class Search:
    """What is searched, and how.

    Attributes
    ----------
    space : settings to choose
    base, overrides : the settings that trials start from, as for `load_config`
    trials : of the study, whoever trains them; those given up early count
    together : trials that train at once in one stack
    seeds : of each trial; its score is their mean
    score : the label-free score that is to be high
    """

    space: Space
    base: Path | None = None
    overrides: Sequence[str] = ()
    trials: int = 64
    together: int = 16
    seeds: int = 1
    sampler: str = "tpe"
    score: str = SCORES[0]
    halving: bool = True

    def check(self) -> None:
        """Raise a UserError where something is not to be had."""
        for name, value, choices in (("sampler", self.sampler, SAMPLERS), ("score", self.score, SCORES)):
            if value not in choices:
                raise UserError(f"there is no {name} {value!r}; choose one of {', '.join(choices)}")
        if min(self.trials, self.together, self.seeds) < 1:
            raise UserError("--trials, --together and --seeds must be at least 1")
        check_space(self.space, self.base, self.overrides)
        if self.config({}).optimizer.freeze_last:
            raise UserError("a search needs optimizer.freeze_last = 0: its trials begin at different steps of a pass")

    def on_another_machine(self) -> "Search":
        """The same, where the file `base` is not."""
        before = as_overrides(self.base) if self.base else []
        return replace(self, base=None, overrides=[*before, *self.overrides])

    def config(self, point: Point, seed: int | None = None) -> Config:
        """The settings of a point."""
        return point_config(point, self.base, self.overrides, seed)


def search(
    cache: EmbeddingCache,
    wanted: Search,
    out: Path,
    *,
    storage: str = "sqlite",
    plugins: Sequence[Plugin] = (),
    on: str = "",
    draws: int = 0,
) -> SearchRecord:
    """Train until the study in `out` has all its trials, and say how they did; a study that is there goes on.

    `on` names a Ray cluster whose nodes train them: ``ray`` or ``ray:ADDRESS``. They see the cache and `out` by the
    same paths. `draws` tells processes that begin in the same instant apart: each draws its own trials.

    Raises
    ------
    UserError
        Settings that do not fit the cache, a study of something else, or a folder of something else.
    """
    wanted.check()
    config = wanted.config({})
    rows, device = training_rows(cache, config.train.split), pick_device(config.train.device)
    for point in ({}, *ends(wanted.space)):
        check_settings(wanted.config(point), len(rows), cache.views, str(cache.folder), unreadable=bool(cache.failures))
    refuse_run(out)
    make_folder(out / "workers")
    study = open_study(out, storage, kept_apart(cache, wanted, plugins))
    with study_errors(out):
        if on:
            from temi.pipeline.runs.ray_trials import Job, search_on_nodes  # it is made of what is here

            search_on_nodes(on, Job.of(cache, out, plugins), wanted, lambda: finished(study))
            with study_lock(out):
                return write_results(study, cache, wanted, out, plugins)
        scratch = out / NEIGHBOR_FOLDER
        everything = Features.of_cache(cache, rows, scratch, device)
        with (
            Progress("search", max(0, wanted.trials - finished(study)), "trial") as progress,
            Desk(study, wanted, out, progress, draws) as desk,
        ):
            try:
                while candidates := desk.begin():
                    configs = [config for one in candidates for config in one.configs]
                    place = check_memory(configs, cache, len(rows), device).place
                    with quiet():
                        train_pack(
                            cache, everything, candidates, desk, halving=wanted.halving, place=place, scratch=scratch
                        )
            finally:
                desk.check_there()
                with study_lock(out):
                    record = write_results(study, cache, wanted, out, plugins)
    return record


def finished(study: "optuna.Study") -> int:
    """Trials of `study` that are trained, or given up."""
    return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))


def kept_apart(cache: EmbeddingCache, wanted: Search, plugins: Sequence[Plugin]) -> dict[str, str]:
    """What a study cannot mix."""
    return {
        "embeddings": cache.digest,
        "settings": dump_toml(wanted.config({})),
        "space": dump_space(wanted.space),
        "score": wanted.score,
        "seeds": str(wanted.seeds),
        "plugins": " ".join(sorted(plugin.digest for plugin in plugins)),
    }


def _sampler(name: str, seed: int) -> "optuna.samplers.BaseSampler":
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match name:
            case "random":
                return optuna.samplers.RandomSampler(seed)
            case "cmaes":
                import_extra("cmaes", "search", "the sampler cmaes")
                return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
            case _:
                return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


class Desk:
    """Between a study and the packs of one process: asks for trials, tells how they did, takes over those of the dead.

    A trial is asked for and marked as this process's under the lock of the study, so whose mark nobody holds is dead.
    """

    def __init__(self, study: "optuna.Study", wanted: Search, out: Path, progress: Progress, draws: int = 0) -> None:
        self.study, self.wanted, self.out, self.progress = study, wanted, out, progress
        self.study.sampler = _sampler(wanted.sampler, len(study.trials) + draws * wanted.trials)
        self.name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._file = study_identity(out)
        self._trials: dict[int, optuna.Trial] = {}
        self._waiting: list[Candidate] = []
        self._shared: Config | None = None

    def __enter__(self) -> "Desk":
        lock = Lock.acquire(self._mark(self.name))
        assert lock is not None  # the name is new
        self._lock = lock
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _mark(self, worker: str) -> Path:
        return self.out / "workers" / f"{Path(worker).name}{LOCK}"  # a name from a file leads nowhere else

    def check_there(self) -> None:
        """Raise a UserError where the study is not there any more: what is told to it now is lost."""
        if self._file is None or study_identity(self.out) != self._file:
            raise study_gone(self.out)

    def begin(self) -> list[Candidate]:
        """The first candidates of a new pack; [] where the study has all its trials."""
        self._shared = None
        return self.more(self.wanted.together)

    def more(self, places: int) -> list[Candidate]:
        """At most so many candidates that can train in one pass, beside those of the pack that trains."""
        self.check_there()
        with study_lock(self.out):
            while (
                len(self._fitting()) < places
                and len(self._waiting) < self.wanted.together
                and (trial := self._orphan() or self._ask())
            ):
                self._waiting.append(self._candidate(trial))
        chosen = self._fitting()[:places]
        self._waiting = [one for one in self._waiting if one not in chosen]
        if chosen:
            self._shared = chosen[0].configs[0]
        return chosen

    def _fitting(self) -> list[Candidate]:
        """Those waiting that can train with the pack; where none trains, with the first of them."""
        shared = self._shared or (self._waiting[0].configs[0] if self._waiting else None)
        return [one for one in self._waiting if shared and len(group_trials([shared, one.configs[0]])) == 1]

    def _ask(self) -> "optuna.Trial | None":
        if len(self.study.get_trials(deepcopy=False)) >= self.wanted.trials:
            return None
        trial = self.study.ask({name: distribution(values) for name, values in self.wanted.space.items()})
        trial.set_user_attr(WORKER, self.name)
        return trial

    def _orphan(self) -> "optuna.Trial | None":
        """A trial that a process had begun which no longer lives; it is this one's from now on."""
        import optuna

        for frozen in self.study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
            worker = str(frozen.user_attrs.get(WORKER, "nobody"))
            if worker == self.name or (lock := Lock.acquire(self._mark(worker))) is None:
                continue
            lock.release()
            trial = optuna.trial.Trial(self.study, frozen._trial_id)
            trial.set_user_attr(WORKER, self.name)
            return trial
        return None

    def _candidate(self, trial: "optuna.Trial") -> Candidate:
        self._trials[trial.number] = trial
        several = self.wanted.seeds > 1
        configs = [self.wanted.config(trial.params, seed if several else None) for seed in range(self.wanted.seeds)]
        return Candidate(trial.number, configs)

    def survivors(self, step: int, score: dict[int, float]) -> set[int]:
        """Those among the best third of all trials of the study that came to `step`; the others are told as pruned."""
        import optuna

        before = self.study.get_trials(deepcopy=False)
        for number, value in score.items():
            if step not in before[number].intermediate_values:  # one that was taken over may have come here already
                self._trials[number].report(value, step)
        seen = [trial.intermediate_values.get(step) for trial in self.study.get_trials(deepcopy=False)]
        ranked = sorted((value for value in seen if value is not None), reverse=True)
        enough = ranked[-(-len(ranked) // REDUCTION) - 1]
        for number, value in score.items():
            if value < enough:
                self._tell(number, state=optuna.trial.TrialState.PRUNED)
        return {number for number, value in score.items() if value >= enough}

    def finished(self, number: int, trained: Sequence[Training]) -> None:
        """Tell the mean score over seeds, and keep all scores with the trial."""
        self._trials[number].set_user_attr(TRAINED, [one.model_dump(mode="json") for one in trained])
        self._tell(number, sum(score_of(one, self.wanted.score) for one in trained) / len(trained))

    def failed(self, number: int, reason: str) -> None:
        """Tell that a trial cannot go on."""
        import optuna

        self._trials[number].set_user_attr(FAILED, reason)
        self._tell(number, state=optuna.trial.TrialState.FAIL)

    def _tell(self, number: int, value: float | None = None, **state: Any) -> None:
        self.study.tell(number, value, **state)
        del self._trials[number]
        done = [trial.value for trial in self.study.get_trials(deepcopy=False) if TRAINED in trial.user_attrs]
        best = max((value for value in done if value is not None), default=None)
        self.progress.advance(note="" if best is None else f"best {self.wanted.score} {best:.4f}")


def distribution(values: Range | list[Any]) -> Any:
    """What Optuna calls the values of a setting."""
    import optuna

    if isinstance(values, list):
        return optuna.distributions.CategoricalDistribution(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that steps end below `high`, as those of Python's range do
        if values.kind == "int":
            return optuna.distributions.IntDistribution(
                int(values.low), int(values.high), values.log, int(values.step or 1)
            )
        return optuna.distributions.FloatDistribution(values.low, values.high, values.log, values.step)


def _trained(point: Point, wanted: Search) -> dict[str, Setting]:
    """The settings at a point of the space that were trained: those that the objective lacks are left out."""
    return {name: value for name, value in flat_settings(wanted.config(point)).items() if name in point}


def write_results(
    study: "optuna.Study", cache: EmbeddingCache, wanted: Search, out: Path, plugins: Sequence[Plugin] = ()
) -> SearchRecord:
    """``search.json`` and ``best.toml`` of what the study holds now."""
    if study_file(out) is None:
        raise study_gone(out)
    trials = sorted(study.get_trials(deepcopy=False), key=rank)
    record = SearchRecord(
        score=wanted.score,
        cache=str(cache.folder.resolve()),
        digest=cache.digest,
        rows=cache.rows,
        plugins={plugin.path.name: plugin.digest for plugin in plugins},
        settings=wanted.config({}).model_dump(mode="json", exclude={"embed"}),
        trials=tuple(record_of(trial, _trained(trial.params, wanted)) for trial in trials),
    )
    write_record(out / SEARCH, record)
    if trials and TRAINED in trials[0].user_attrs:
        write_atomic(out / BEST, dump_toml(wanted.config(trials[0].params)).encode())
    return record
