"""Trials of a search that train in one stack: a hopeless one leaves early and gives its place to the next.

Successive halving (Jamieson and Talwalkar, AISTATS 2016), asynchronous as in ASHA (Li et al., MLSys 2020): at a third
and at a ninth of its steps a trial's heads are compared with those of all trials that came so far, and the best third
goes on. Batches are a function of the step of the pass, so trials that train side by side see the same.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from temi.cache import EmbeddingCache
from temi.pipeline.config import Config
from temi.pipeline.device import keep_freed_memory
from temi.pipeline.features.features import Features
from temi.pipeline.heads.bank import Place
from temi.pipeline.heads.batches import TrainingSet, load_training_set
from temi.pipeline.heads.schedule import total_steps
from temi.pipeline.heads.trainer import HeadTrainer
from temi.pipeline.runs.fit import begin_heads, build_model
from temi.pipeline.runs.label_free import compared, head_agreement, label_free_scores
from temi.pipeline.runs.loop import Trial
from temi.pipeline.runs.records import Training
from temi.pipeline.start.agreement import AGREEMENT_ROWS

RUNGS = (9, 3)  # parts of a trial's steps after which it is compared with the others
DIVERGED = "none of its last {} steps had a finite loss and gradient, or its heads are not finite"


@dataclass
class Candidate:
    """A trial of a search while it trains, once for each of its seeds.

    Attributes
    ----------
    number : of the trial in its study
    configs : one per seed, S of them
    born : the step of the pass at which it began
    states : the trainer's tensors of each seed; empty before it began
    began : seconds on a clock
    """

    number: int
    configs: Sequence[Config]
    born: int = 0
    states: list[dict[str, Tensor]] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)


class Judge(Protocol):
    """Who is told how candidates do, says which of them go on, and brings new ones."""

    def survivors(self, step: int, score: dict[int, float]) -> set[int]:
        """Numbers of the candidates that go on, of those that reached `step` of theirs with these scores."""

    def finished(self, number: int, trained: Sequence[Training]) -> None:
        """The candidate trained to its end, with each of its seeds."""

    def failed(self, number: int, reason: str) -> None:
        """The candidate cannot go on."""

    def more(self, places: int) -> list[Candidate]:
        """At most so many candidates that can train beside those that do."""


def train_pack(
    cache: EmbeddingCache,
    everything: Features,
    candidates: list[Candidate],
    judge: Judge,
    *,
    halving: bool = True,
    place: Place = "device",
    scratch: Path | None = None,
) -> None:
    """Train candidates that can share a pass, and those that take the places of others, until none is left.

    Nothing is written: `judge` is told everything. All configs agree in the settings that a pass shares. `place` and
    `scratch`: of the bank, see `load_training_set`.
    """
    features, shared, places = everything.distinct(), candidates[0].configs[0], len(candidates)
    data, step = load_training_set(features, shared, place, scratch), 0
    steps = total_steps(shared, len(data))
    rungs = [*(steps // part for part in RUNGS if halving and steps // part), steps]
    while candidates:
        seating = Seating(candidates, features, data)
        stop = min(one.born + next(rung for rung in rungs if one.born + rung > step) for one in candidates)
        seating.train(step, stop)
        step, going = stop, []
        for one in candidates:
            if not seating.sound(one):
                judge.failed(one.number, DIVERGED.format(stop - seating.first_step))
            elif step - one.born == steps:
                judge.finished(one.number, seating.trained(one, cache, everything, steps))
            else:
                going.append(one)
        going = _best(going, seating, judge, {one.number: step - one.born for one in going}, rungs)
        for one in going:
            one.states = seating.states(one)
        candidates = going + [replace(one, born=step) for one in judge.more(places - len(going))]


def _best(
    going: list[Candidate], seating: "Seating", judge: Judge, age: Mapping[int, int], rungs: Sequence[int]
) -> list[Candidate]:
    """Of those whose `age` is a rung, the ones that the judge lets go on, and all others."""
    gone: set[int] = set()
    for rung in rungs:
        if score := {one.number: seating.agreement(one) for one in going if age[one.number] == rung}:
            gone |= score.keys() - judge.survivors(rung, score)
    return [one for one in going if one.number not in gone]


class Seating:
    """The stack of some candidates, a trial of it for each of their seeds, from one change of places to the next."""

    def __init__(self, candidates: Sequence[Candidate], features: Features, data: TrainingSet) -> None:
        self.features = features
        configs = [config for one in candidates for config in one.configs]
        born = [one.born for one in candidates for _ in one.configs]
        self.trainer = HeadTrainer(configs, data, born=born)
        each = len(candidates[0].configs)
        self._places = {one.number: range(i * each, (i + 1) * each) for i, one in enumerate(candidates)}
        for one in candidates:
            for place, state in zip(self._places[one.number], one.states, strict=False):
                self.trainer.trial(place).load(state)
        fresh = [place for one in candidates if not one.states for place in self._places[one.number]]
        begin_heads(self.trainer, features, configs, trials=fresh)

    def train(self, first: int, stop: int) -> None:
        """Steps [first, stop) of the pass."""
        self.first_step = first
        with keep_freed_memory(self.trainer.device):
            for number, rows in enumerate(self.trainer.batches.bank_rows(first, stop), start=first):
                self.trainer.step(number, rows)
        self.loss = self.trainer.window.means()[0].cpu()

    def sound(self, one: Candidate) -> bool:
        """Whether the candidate had a finite step, and its heads are finite."""
        places = list(self._places[one.number])
        return bool(self.loss[places].isfinite().all()) and all(map(self.trainer.finite, places))

    def states(self, one: Candidate) -> list[dict[str, Tensor]]:
        """What the candidate goes on from."""
        trials = (self.trainer.trial(place).tensors for place in self._places[one.number])
        return [{name: tensor.clone() for name, tensor in tensors.items()} for tensors in trials]

    def agreement(self, one: Candidate) -> float:
        """How far the candidate's heads agree on a sample of rows, mean over its seeds; of single heads, confidence."""
        x = self.trainer.data.originals
        x = x[:: -(-len(x) // AGREEMENT_ROWS)].to(self.trainer.device)
        found = []
        for place in self._places[one.number]:
            heads = self.trainer.heads_of(place)
            probability = self.trainer.teacher.select(heads).probabilities(x, self.trainer.teacher_temperature[heads])
            agreed = head_agreement(probability[compared(len(heads))].argmax(-1).int())
            found.append(probability.max(-1).values.mean().item() if agreed is None else agreed)
        return sum(found) / len(found)

    def trained(self, one: Candidate, cache: EmbeddingCache, everything: Features, steps: int) -> list[Training]:
        """The candidate's label-free scores, seed by seed."""
        return [
            self._trained(place, config, cache, everything, steps, one.began)
            for place, config in zip(self._places[one.number], one.configs, strict=True)
        ]

    def _trained(
        self, place: int, config: Config, cache: EmbeddingCache, everything: Features, steps: int, began: float
    ) -> Training:
        trial = Trial(self.trainer, place, config)
        trial.remember(self.loss[place])
        data, copies = self.trainer.data, everything.copies[1]
        model = build_model(trial, self.features, copies, cache.manifest.fingerprint)
        scores = label_free_scores(model.of_scaled, data.originals, data.neighbors, copies)
        return Training(
            steps=steps,
            images=len(everything),
            seconds=round(time.perf_counter() - began, 3),
            trials_in_pass=self.trainer.trials,
            skipped_steps=int(self.trainer.skipped[place]),
            head_loss=tuple(model.loss.tolist()),
            selected_head=model.selected,
            **scores.model_dump(),
        )
