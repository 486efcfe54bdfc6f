"""A search: it trains every trial once, resumes after a kill, shares its study, and knows no label."""

import json
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from mixtures import SHORT_TRIALS, mixture, write_cache

from temi.cache import EmbeddingCache
from temi.pipeline.config import Config, load_config
from temi.pipeline.errors import USER_ERRORS, UserError
from temi.pipeline.features.features import Features
from temi.pipeline.plugins import load_plugin
from temi.pipeline.progress import Progress, quiet
from temi.pipeline.runs import footprint, pack
from temi.pipeline.runs.pack import Candidate, train_pack
from temi.pipeline.runs.records import SearchRecord, Training, TrialRecord, read_record
from temi.pipeline.runs.run_folder import SEARCH
from temi.pipeline.runs.search import Desk, Search, distribution, kept_apart, search
from temi.pipeline.runs.space import Range, check_space, point_config, read_space
from temi.pipeline.runs.study import BEST, ended, hopeless, open_study, remove_study, study_errors, study_lock

TEMI = Path(sys.executable).with_name("temi")
SPACE = {"objective.beta": Range(low=0.5, high=1.2), "optimizer.lr": Range(low=1e-4, high=1e-2, log=True)}
SPACE_FILE = """
[search.space]
"objective.beta" = {low = 0.5, high = 1.2}
"optimizer.lr" = {low = 1e-4, high = 1e-2, log = true}
"""


def small_cache(folder: Path) -> EmbeddingCache:
    embedding, label = mixture(rows=120, dim=8, clusters=4)
    return write_cache(folder / "cache", embedding, label)


def wanted(**more: object) -> Search:
    return Search(SPACE, overrides=SHORT_TRIALS, **{"trials": 9, "together": 4, "sampler": "random", **more})


def stored(out: Path) -> optuna.Study:
    return optuna.load_study(study_name="temi", storage=f"sqlite:///{out / 'study.db'}")


def states(out: Path) -> list[str]:
    return [trial.state.name for trial in stored(out).trials]


def running(out: Path) -> int:
    with study_lock(out):  # while a study is made, whoever opens it makes the same tables
        return states(out).count("RUNNING")


@pytest.mark.long
def test_every_trial_is_told_once_and_hopeless_ones_leave_early(tmp_path: Path) -> None:
    cache = small_cache(tmp_path)
    record = search(cache, wanted(), tmp_path / "study")
    assert len(record.trials) == 9
    assert sorted(trial.trial for trial in record.trials) == [f"trial-{number:03d}" for number in range(9)]
    counts = {name: states(tmp_path / "study").count(name) for name in ("COMPLETE", "PRUNED")}
    assert sum(counts.values()) == 9
    assert counts["PRUNED"] >= 1
    trained = [trial.training for trial in record.trials if trial.training]
    assert [one.head_agreement for one in trained] == sorted((one.head_agreement for one in trained), reverse=True)
    assert all("others did better" in trial.stopped for trial in record.trials if trial.stopped)
    best = load_config(tmp_path / "study/best.toml")
    assert best.objective.beta == record.trials[0].settings["objective.beta"]
    assert search(cache, wanted(), tmp_path / "study") == record  # nothing is owed
    assert len(search(cache, wanted(trials=10), tmp_path / "study").trials) == 10


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("cmaes", marks=pytest.mark.long)])
def test_other_samplers_choose_within_the_space(tmp_path: Path, sampler: str) -> None:
    record = search(small_cache(tmp_path), wanted(sampler=sampler, together=3), tmp_path / "study")
    assert len({trial.settings["optimizer.lr"] for trial in record.trials}) == 9
    assert all(0.5 <= trial.settings["objective.beta"] <= 1.2 for trial in record.trials)


def test_a_study_of_other_settings_is_refused(tmp_path: Path) -> None:
    cache = small_cache(tmp_path)
    open_study_of(cache, tmp_path, wanted())
    with pytest.raises(UserError, match=r"is a study with space of its own"):
        open_study_of(cache, tmp_path, Search({"objective.beta": [0.5, 0.6]}, overrides=SHORT_TRIALS))
    with pytest.raises(UserError, match=r"is a study with seeds of its own"):
        open_study_of(cache, tmp_path, wanted(seeds=2))


def test_a_study_is_not_put_into_a_run_or_a_cache_and_removes_nothing_there(tmp_path: Path) -> None:
    cache, run, trials = small_cache(tmp_path), tmp_path / "run", tmp_path / "trials"
    (run / "neighbors").mkdir(parents=True)
    (run / "config.toml").touch()
    trials.mkdir()
    (trials / "trials.json").touch()
    places = {run: "folder of a single run", trials: "folder of trials", cache.folder: "of a cache"}
    for out, sentence in (*places.items(), (cache.folder / "a", "cache")):
        before = sorted(out.rglob("*"))
        with pytest.raises(UserError, match=sentence):
            search(cache, wanted(), out)
        with pytest.raises(UserError, match=sentence):
            remove_study(out)
        assert sorted(out.rglob("*")) == before


def open_study_of(cache: EmbeddingCache, folder: Path, asked: Search, storage: str = "sqlite") -> optuna.Study:
    (folder / "study/workers").mkdir(parents=True, exist_ok=True)
    return open_study(folder / "study", storage, kept_apart(cache, asked, ()))


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_what_the_dead_began_is_taken_over_and_what_the_living_do_is_not(tmp_path: Path, storage: str) -> None:
    asked = wanted(trials=4, together=4)
    study, out = open_study_of(small_cache(tmp_path), tmp_path, asked, storage), tmp_path / "study"
    with quiet_desk(study, asked, out) as dead:
        begun = dead.more(2)
        with quiet_desk(study, asked, out) as living:
            assert [one.number for one in begun] == [0, 1]
            assert [one.number for one in living.more(1)] == [2]
    with quiet_desk(study, asked, out) as heir:  # both are gone now
        taken = heir.more(4)
        assert sorted(one.number for one in taken) == [0, 1, 2, 3]
        assert taken[0].configs == begun[0].configs
        heir.survivors(2, {one.number: float(one.number) for one in taken})
        assert [trial.state.name for trial in study.trials] == ["PRUNED", "PRUNED", "RUNNING", "RUNNING"]
        assert heir.begin() == []


def quiet_desk(study: optuna.Study, asked: Search, out: Path) -> Desk:
    with quiet():
        return Desk(study, asked, out, Progress("search", 1, "trial"))


class Listener:
    """A judge that lets everybody go on, and brings one more candidate."""

    def __init__(self, later: list[Candidate]) -> None:
        self.later, self.trained, self.rungs = later, {}, []

    def survivors(self, step: int, score: dict[int, float]) -> set[int]:
        self.rungs.append((step, sorted(score)))
        return set(score) - {1}

    def finished(self, number: int, trained: list[Training]) -> None:
        self.trained[number] = trained

    def failed(self, number: int, reason: str) -> None:
        self.trained[number] = reason

    def more(self, places: int) -> list[Candidate]:
        chosen, self.later = self.later[:places], self.later[places:]
        return chosen


def test_a_candidate_trains_as_it_would_alone_whoever_leaves_and_comes(tmp_path: Path) -> None:
    cache = small_cache(tmp_path)
    features = Features.of_cache(cache, np.arange(cache.rows), tmp_path)
    configs = [load_config(None, [*SHORT_TRIALS, f"objective.beta={beta}"]) for beta in (0.6, 0.8, 1.0)]
    broken = load_config(None, [*SHORT_TRIALS, "optimizer.lr=1e30"])
    both = Listener([Candidate(2, [configs[2]]), Candidate(3, [broken])])
    train_pack(cache, features, [Candidate(0, [configs[0]]), Candidate(1, [configs[1]])], both)
    alone = Listener([])
    train_pack(cache, features, [Candidate(0, [configs[0]])], alone)
    same = ("mean_confidence", "head_agreement", "linear_accuracy", "largest_cluster")
    assert [getattr(both.trained[0][0], name) for name in same] == [getattr(alone.trained[0][0], name) for name in same]
    assert both.rungs[0] == (2, [0, 1])
    assert sorted(both.trained) == [0, 2, 3]  # 1 left at its first rung
    assert "finite" in both.trained[3]
    assert both.trained[2][0].steps == 18


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"must hold a table \[search.space\]"),
        ('[search.space]\n"objective.beta" = 3', r'"objective.beta" in .* must be a list of values or a range'),
        ('[search.space]\n"objective.beta" = {low = 2, high = 1}', "low must be below high"),
        ('[search.space]\n"heads.clusters" = [5, 6]', "heads.clusters cannot be searched: scores of different"),
        ('[search.space]\n"embed.views" = [0, 2]', "embed.views cannot be searched: it is a setting of stage one"),
        ("[search.space]\nobjective.beta = 3", r'"objective.beta" in .* must be a list of values or a range'),
        ("[search]\nspace = 3", r"must hold a table \[search.space\]"),
        ('[search.space]\n"train.seed" = [5, 6]', "--seeds trains every trial with several"),
        ('[search.space]\n"objective.gamma" = [5, 6]', "has the setting objective.gamma"),
        ('[search.space]\n"optimizer.speed" = [5, 6]', "unknown setting optimizer.speed"),
        ('[search.space]\n"objective.beta" = {low = -1.0, high = 1.0}', "setting objective.beta .* greater than 0"),
        ("[search", "is not valid TOML"),
        ('[search.space]\n"objective.beta" = {low = 0.3, high = inf}', '"objective.beta" in .*space.toml .* finite'),
        ('[search.space]\n"objective.beta" = {low = 0.3, high = 1, step = 0.0}', "a step must be above 0"),
        ('[search.space]\n"objective.beta" = {low = 0.3, high = 1, step = -0.1}', "a step must be above 0"),
        ('[search.space]\n"neighbors.k" = {low = 5, high = 9, step = 0.5}', '"neighbors.k" in .*space.toml is a whole'),
        ('[search.space]\n"neighbors.k" = {low = 5, high = 12.0}', '"neighbors.k" in .*space.toml is a whole number'),
        ('[search.space]\n"neighbors.k" = [5, 12.5]', r"setting neighbors.k in \[search.space\]: .* valid integer"),
    ],
)
def test_a_space_that_cannot_be_searched_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "space.toml").write_text(text)
    with pytest.raises(UserError, match=sentence):
        check_space(read_space(tmp_path / "space.toml"), None, [])


def test_a_space_that_is_not_there_is_said_as_a_config_file_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"space .*no.toml does not exist; give --space an existing TOML file"):
        read_space(tmp_path / "no.toml")


def test_settings_of_a_regularizer_that_a_trial_does_not_have_are_left_out() -> None:
    load_plugin(Path(__file__).parents[3] / "examples/plugins/power_law.py")
    space = {"objective.regularizer": ["none", "power-law"], "objective.exponent": Range(low=0.1, high=1.0)}
    check_space(space, None, [])
    chosen = point_config({"objective.regularizer": "power-law", "objective.exponent": 0.3}, None, [])
    assert chosen.objective.model_extra == {"exponent": 0.3}
    assert not point_config(
        {"objective.regularizer": "none", "objective.exponent": 0.3}, None, []
    ).objective.model_extra


def test_a_name_in_a_space_needs_no_quotes(tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text(SPACE_FILE.replace('"', ""))
    assert read_space(file) == SPACE
    file.write_text("[search.space.objective]\nbeta = [0.5, 0.6]")
    assert read_space(file) == {"objective.beta": [0.5, 0.6]}


def test_trials_are_told_with_the_settings_that_their_objective_has(tmp_path: Path) -> None:
    file = Path(__file__).parents[3] / "examples/plugins/debiased_icon.py"
    load_plugin(file)
    space = {"objective.name": ["temi", "icon"], "objective.debias": [0, 0.3]}
    wish = replace(wanted(trials=8, halving=False), space=space)
    found = [trial.settings for trial in search(small_cache(tmp_path), wish, tmp_path / "study").trials]
    assert {one["objective.name"] for one in found} == {"temi", "icon"}
    assert all(("objective.debias" in one) == (one["objective.name"] == "icon") for one in found)


@pytest.mark.long
def test_the_command_that_follows_a_search_names_its_plugin(tmp_path: Path) -> None:
    file = Path(__file__).parents[3] / "examples/plugins/debiased_icon.py"
    (tmp_path / "space.toml").write_text('[search.space]\nobjective.name = ["icon"]')
    settings = [part for setting in SHORT_TRIALS for part in ("--set", setting)]
    options = ["--out", tmp_path / "study", "--space", tmp_path / "space.toml", "--trials", "1", "--plugin", file]
    command = [TEMI, "search", small_cache(tmp_path).folder, *options, *settings]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [hint] = re.findall("^next: temi (.+)$", done.stdout, re.MULTILINE)
    after = [tmp_path / "run" if part == "RUN" else part for part in shlex.split(hint)]
    assert subprocess.run([TEMI, *after], capture_output=True).returncode == 0


@pytest.mark.parametrize("values", [Range(low=5, high=12, step=4), Range(low=0.1, high=1.0, step=0.4)])
def test_a_step_may_end_below_the_end_without_a_warning(values: Range) -> None:
    assert distribution(values).high < values.high  # a warning is an error here


def test_a_step_that_is_no_whole_number_is_kept_between_whole_ends() -> None:
    assert distribution(Range(low=0, high=2, step=0.5)).step == 0.5


def stopped(*reasons: str) -> list[TrialRecord]:
    return [TrialRecord(trial=f"trial-{n:03d}", settings={}, stopped=reason) for n, reason in enumerate(reasons)]


def test_what_failed_is_told_with_each_reason_once() -> None:
    trials = stopped("no finite loss", "given up at step 4: others did better", "no finite loss", "too\n  large")
    assert ended(trials) == "1 given up by halving, 3 failed (no finite loss; too large)"
    assert ended(stopped("a", "b", "c", "d", "e")) == "5 failed (a; b; c; 2 more reasons)"
    assert hopeless(trials)
    assert not hopeless([*trials, *stopped("not trained to its end yet")])


NO_LOSS = """
from temi.pipeline.heads.objectives import Objective, by_autograd, register_objective

def loss(batch):
    return (batch.student * float("nan")).mean((1, 2))

register_objective("no-loss", Objective(by_autograd(loss)))
"""


@pytest.mark.parametrize("lost", ["gone", "empty"])
def test_a_search_whose_study_is_lost_is_not_begun_again_over_its_results(tmp_path: Path, lost: str) -> None:
    cache, study = small_cache(tmp_path), tmp_path / "study"
    search(cache, wanted(trials=3, together=3), study)
    before = [(study / name).read_bytes() for name in (SEARCH, BEST)]
    (study / "study.db").unlink()
    if lost == "empty":
        (study / "study.db").touch()
    with pytest.raises(UserError, match=r"holds the search.json of a search whose study.db is gone or empty; restore"):
        search(cache, wanted(trials=3, together=3), study)
    assert [(study / name).read_bytes() for name in (SEARCH, BEST)] == before
    remove_study(study)
    assert len(search(cache, wanted(trials=3, together=3), study).trials) == 3


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_is_removed_while_it_is_searched_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    cache, study = small_cache(tmp_path), tmp_path / "study"
    tell = Desk.finished

    def remove_then_tell(desk: Desk, number: int, trained: list[Training]) -> None:
        tell(desk, number, trained)
        shutil.rmtree(study, ignore_errors=True)
        if replaced:
            (study / "workers").mkdir(parents=True)
            (study / "study.db").touch()

    monkeypatch.setattr(Desk, "finished", remove_then_tell)
    with pytest.raises(UserError, match="study was removed, renamed or replaced while its search ran"):
        search(cache, wanted(trials=2, together=1, halving=False), study)
    assert not (study / BEST).exists()


@pytest.mark.long
def test_a_full_disk_is_no_damage(tmp_path: Path) -> None:
    small_cache(tmp_path)
    words = shlex.join(command(tmp_path, "--clusters", "4", "--trials", "3"))
    full = subprocess.run(["bash", "-c", f"ulimit -f 60; exec {words}"], capture_output=True, text=True)
    assert full.returncode == 2
    assert re.search(
        r"cannot write .*study.db: the file would be larger than allowed here \(`ulimit -f`\); raise the limit, ",
        full.stderr,
    )
    assert "overwrite" not in full.stderr
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("content", [b"garbage\n" * 9, None])
def test_a_damaged_database_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    cache = small_cache(tmp_path)
    open_study_of(cache, tmp_path, wanted())
    file = tmp_path / "study/study.db"
    file.write_bytes(file.read_bytes()[:20000] if content is None else content)
    with pytest.raises(
        UserError, match=r"study.db is damaged or cannot be used \(.*\); restore it, search with another"
    ):
        search(cache, wanted(), tmp_path / "study")


@pytest.mark.parametrize("torn", [b'{"op_code": 4, "wor', b'{"op_code": 4, "wor\n', b"\xff"])
def test_a_journal_outlives_a_line_that_was_not_written_to_its_end(tmp_path: Path, torn: bytes) -> None:
    cache, file = small_cache(tmp_path), tmp_path / "study/journal.log"
    study = open_study_of(cache, tmp_path, wanted(), "journal")
    study.ask()
    with file.open("ab") as journal:
        journal.write(torn)
    again = open_study_of(cache, tmp_path, wanted(), "journal")
    again.ask()
    if not torn.endswith(b"\n"):
        with file.open("ab") as journal:
            journal.write(torn)
        again.ask()  # of a process that was at work when another was killed
    assert len(open_study_of(cache, tmp_path, wanted(), "journal").trials) == len(again.trials) >= 2
    assert all(json.loads(line) for line in file.read_bytes().splitlines())


def test_a_journal_that_is_damaged_before_its_end_is_one_sentence(tmp_path: Path) -> None:
    cache, file = small_cache(tmp_path), tmp_path / "study/journal.log"
    open_study_of(cache, tmp_path, wanted(), "journal")
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[0], b"garbage\n", *lines[1:]]))
    with pytest.raises(UserError, match=r"journal.log is damaged or cannot be used"):
        open_study_of(cache, tmp_path, wanted(), "journal")


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
@pytest.mark.parametrize("name", ["a?mode=ro", "a%20b", "s%30", "{a}", "a#b", "\udcff%3f?{0}"])
def test_a_study_is_kept_where_it_was_asked_for_whatever_its_name(tmp_path: Path, name: str, storage: str) -> None:
    cache, folder = small_cache(tmp_path), tmp_path / name
    open_study_of(cache, folder, wanted(), storage).ask()
    assert len(open_study_of(cache, folder, wanted(), storage).trials) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["cache", name])


@pytest.mark.parametrize(("storage", "file"), [("sqlite", "study.db"), ("journal", "journal.log")])
def test_a_file_that_would_be_larger_than_allowed_is_told_by_its_limit(tmp_path: Path, storage: str, file: str) -> None:
    cache, before = small_cache(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    study = open_study_of(cache, tmp_path, wanted(), storage)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "study" / file).stat().st_size, before[1]))
    try:
        with (
            pytest.raises(USER_ERRORS, match=rf"cannot write .*{file}: .*\(`ulimit -f`\); raise the limit, and rerun$"),
            study_errors(tmp_path / "study"),
        ):
            study.set_user_attr("large", "x" * 1000000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def command(tmp_path: Path, *more: str) -> list[str]:
    (tmp_path / "space.toml").write_text(SPACE_FILE)
    settings = [part for setting in SHORT_TRIALS for part in ("--set", setting)]
    chosen = ["--space", str(tmp_path / "space.toml"), "--together", "3", "--sampler", "random"]
    return [str(TEMI), "search", str(tmp_path / "cache"), "--out", str(tmp_path / "study"), *chosen, *settings, *more]


@pytest.mark.long
def test_killed_and_shared_by_two_processes_no_trial_is_lost_or_told_twice(tmp_path: Path) -> None:
    small_cache(tmp_path)
    slow = ["--trials", "8", "--set", "train.min_steps=40000", "--no-halving"]
    with subprocess.Popen(command(tmp_path, *slow), stderr=subprocess.PIPE) as process:
        while not (tmp_path / "study/study.db").exists() or running(tmp_path / "study") < 3:
            assert process.poll() is None, process.stderr.read()  # type: ignore[union-attr]
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    begun = stored(tmp_path / "study").trials
    refused = subprocess.run(command(tmp_path, "--trials", "8"), capture_output=True, text=True)
    assert refused.returncode == 2
    assert "is a study with settings of its own" in refused.stderr
    study = stored(tmp_path / "study")
    settings = study.user_attrs["settings"].replace("min_steps = 40000", "min_steps = 18")
    study.set_user_attr("settings", settings)  # so that the test need not train what it killed
    other = command(tmp_path, "--trials", "8", "--no-halving")
    both = [subprocess.Popen(other, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert states(tmp_path / "study") == ["COMPLETE"] * 8
    done = stored(tmp_path / "study").trials
    assert [trial.params for trial in done[: len(begun)]] == [trial.params for trial in begun]
    assert len(read_record(SearchRecord, tmp_path / "study" / SEARCH).trials) == 8
    shown = subprocess.run([TEMI, "compare", tmp_path / "study", "--format", "json"], capture_output=True, text=True)
    assert [row["verdict"] for row in json.loads(shown.stdout)].count("best") == 1


def test_a_search_in_which_all_trials_fail_says_why_and_ends_with_2(tmp_path: Path) -> None:
    small_cache(tmp_path)
    (tmp_path / "no_loss.py").write_text(NO_LOSS)
    more = ["--trials", "3", "--plugin", str(tmp_path / "no_loss.py"), "--set", "objective.name=no-loss"]
    done = subprocess.run(command(tmp_path, *more), capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "3 trials: 3 failed (none of its last" in done.stdout
    assert done.stdout.count("none of its last") == 1
    assert "no trial of" in done.stderr
    assert "Traceback" not in done.stderr
    assert "next:" not in done.stdout


def test_a_process_asks_for_no_more_trials_than_it_has_places(tmp_path: Path) -> None:
    asked = wanted(trials=9, together=4)
    study = open_study_of(small_cache(tmp_path), tmp_path, asked)
    with quiet_desk(study, asked, tmp_path / "study") as desk:
        assert len(desk.more(2)) == 2
        assert [desk.more(0) for _ in range(3)] == [[], [], []]
        assert len(study.trials) == 2


def test_seeds_of_a_trial_differ_whatever_seed_was_set(tmp_path: Path) -> None:
    asked = replace(wanted(seeds=2), overrides=[*SHORT_TRIALS, "train.seed=1", "start.seed=5"])
    study = open_study_of(small_cache(tmp_path), tmp_path, asked)
    with quiet_desk(study, asked, tmp_path / "study") as desk:
        [one] = desk.more(1)
    assert [(config.train.seed, config.start.seed) for config in one.configs] == [(0, 0), (1, 1)]


def test_a_search_puts_the_bank_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peak, seen = footprint.Footprint(1, 1, 1, 1, 1, 1, 1, place="disk"), []
    monkeypatch.setattr("temi.pipeline.runs.search.check_memory", lambda *_: peak)
    load = pack.load_training_set

    def spy(features: Features, config: Config, place: str, scratch: Path) -> object:
        seen.append((place, scratch))
        return load(features, config, place, scratch)

    monkeypatch.setattr(pack, "load_training_set", spy)
    done = search(small_cache(tmp_path), wanted(trials=2, together=2), tmp_path / "study")
    assert seen == [("disk", tmp_path / "study/neighbors")]
    assert all(trial.training or "given up" in str(trial.stopped) for trial in done.trials)
