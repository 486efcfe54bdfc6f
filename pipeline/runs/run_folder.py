"""A run folder: its paths, how it is begun and guarded, and the JSON in it.

::

    RUN/config.toml           every setting of the run; those of the embeddings are in the cache's fingerprint
    RUN/plugins/              a copy of every file of the user's own that was named, never run from here
    RUN/environment.json      versions, revision, device, and the cache's fingerprint
    RUN/metrics.jsonl         a line per window of steps
    RUN/events/               the same for TensorBoard
    RUN/checkpoints/          latest and previous (resume), best (lowest mean training loss), step-N (kept)
    RUN/stopped.json          why training cannot go on, where it cannot
    RUN/start.json            the cuts that the heads began at
    RUN/clusters.json         how the number of clusters was estimated, where it was
    RUN/heads.safetensors     the trained model
    RUN/novelty.safetensors   a sample of the training rows, which tells what is unlike them
    RUN/continued.json        how the run differs from the one that it continues
    RUN/training.json         steps, seconds, skipped steps, losses, label-free scores
    RUN/assignments.parquet   key, row, cluster, confidence of every readable image; .csv beside it
    RUN/corrections.jsonl     what a person put right afterwards; corrections-N.jsonl: of a run that was overwritten
    RUN/run.lock              while a process trains
"""

import json
import math
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

import torch

from temi.cache import EmbeddingCache, Fingerprint, Manifest
from temi.cache.files import Lock, make_folder, os_errors, parse, write_atomic
from temi.cache.schema import MANIFEST, CacheError
from temi.cache.words import counted
from temi.pipeline.config import Config, dump_toml, recorded_config
from temi.pipeline.errors import UserError
from temi.pipeline.plugins import Plugin
from temi.pipeline.products import arithmetic
from temi.pipeline.progress import say
from temi.pipeline.runs.mirror import TRAINS, mirror_of, shown, typed
from temi.pipeline.runs.model import load_metadata

PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "h5py",
    "numpy",
    "faiss-cpu",
    "faiss-gpu",
    "scikit-learn",
    "temi-clustering",
)
OWN = (  # what training and the commands that read a run leave in its folder, without what serves any run
    "config.toml",
    "plugins",
    "environment.json",
    "metrics.jsonl",
    "events",
    "checkpoints",
    "stopped.json",
    "heads.safetensors",
    "training.json",
    "start.json",
    "clusters.json",
    "continued.json",
    "novelty.safetensors",
    "mlflow.json",
    "assignments.parquet",
    "assignments.csv",
    "held-out",
    "result.json",
    "corrections.jsonl",
    "names.json",
    "atlas.safetensors",
    "thumbnails.parquet",
    "report.html",
)
SEARCH, STORAGES = "search.json", {"sqlite": "study.db", "journal": "journal.log"}
STUDY = (SEARCH, *STORAGES.values())  # in the folder of a search
MANY = ("trials.json", "trial-000", *STUDY)


@dataclass(frozen=True)
class TrainedCache:
    """The cache of a run: where it was, the digest of its embeddings, what they were made from, and how many rows and
    generations it had then."""

    folder: str
    digest: str
    fingerprint: Fingerprint
    rows: int = 0
    generation: int = 0

    def __post_init__(self) -> None:
        # By hand, as a path whose bytes are not UTF-8 is no text to pydantic.
        for name, kind in (("folder", str), ("digest", str), ("rows", int), ("generation", int)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"cache.{name} is {getattr(self, name)!r}")


@dataclass(frozen=True)
class Environment:
    """What a run was begun with: versions, device, cache, digests of corrections and of files of the user's own."""

    python: str
    platform: str
    device: str
    threads: int
    packages: dict[str, str]
    revision: str | None
    cache: TrainedCache
    plugins: dict[str, str] = field(default_factory=dict)
    continues: str | None = None  # the run whose clusters it goes on with
    corrections: str = ""
    arithmetic: str = ""  # see pipeline/products.py


class RunFolder:
    """Paths and files of one run; knows nothing of training."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = folder / "config.toml"
        self.environment = folder / "environment.json"
        self.metrics = folder / "metrics.jsonl"
        self.events = folder / "events"
        self.checkpoints = folder / "checkpoints"
        self.latest = self.checkpoints / "latest.safetensors"
        self.previous = self.checkpoints / "previous.safetensors"
        self.best = self.checkpoints / "best.safetensors"
        self.model = folder / "heads.safetensors"
        self.training = folder / "training.json"
        self.start_file = folder / "start.json"
        self.stop_reason = folder / "stopped.json"

    @property
    def finished(self) -> bool:
        """Whether training ran to its end."""
        return self.training.exists()

    def check_finished(self) -> None:
        """Raise a UserError that says what is in the folder, where that is not a finished run."""
        if self.finished:
            return
        place = typed(self.folder)
        if self.config.exists():
            told = f"is not a finished run; run (or resume) `temi train-heads CACHE --out {place}`"
        elif _is_cache(self.folder):
            told = (
                f"is not a finished run but an embedding cache; train one on it: `temi train-heads {place} --out RUN`"
            )
        else:
            missing = "" if self.folder.exists() else ", as it does not exist"
            told = f"is not a finished run{missing}; give the --out of a finished `temi train-heads`"
        raise UserError(f"{self.folder} {told}")

    @property
    def stopped(self) -> str | None:
        """Why training cannot go on: a sentence; None where nothing speaks against it."""
        return str(read_json(self.stop_reason)["reason"]) if self.stop_reason.exists() else None

    def stop(self, step: int, reason: str) -> None:
        """Note that training cannot go on after `step`."""
        write_json(self.stop_reason, {"step": step, "reason": reason})

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do: training ran to its end, or cannot go on."""
        return self.finished or self.stopped is not None

    @property
    def holds_work(self) -> bool:
        """Whether training left anything to go on from or to read; else a corrected command may start it anew."""
        return self.settled or self.latest.exists() or self.previous.exists()

    def begun_with(self) -> Environment:
        """What ``environment.json`` says; UserError where it is missing or damaged."""
        table = read_json(self.environment)
        try:
            cache = table["cache"]
            made_from = parse(Fingerprint, cache["fingerprint"], self.environment)
            table["cache"] = TrainedCache(**{**cache, "fingerprint": made_from})
            return Environment(**table)
        except (KeyError, TypeError) as error:
            raise UserError(f"{self.environment} is damaged ({error}); restore it or train again") from None

    def saved_states(self) -> dict[int, Path]:
        """Step -> checkpoint to resume from: the latest and the one before."""
        found = [path for path in (self.latest, self.previous) if path.exists()]
        return {int(load_metadata(path)["step"]): path for path in found}

    def start(self, config: Config, environment: Environment, overwrite: bool, plugins: Sequence[Plugin] = ()) -> None:
        """Create the folder, or check that the one there was made with these settings on this cache.

        A run that came to no checkpoint, as of a loss with a mistake in it, is started anew.

        Raises
        ------
        UserError
            The folder holds a run with other settings or another cache, or something that is no run.
        """
        if overwrite or not self.holds_work:
            self.remove()
        with os_errors(self.folder, "create"):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            if plugins:
                (self.folder / "plugins").mkdir(exist_ok=True)
        environment = replace(environment, plugins={plugin.path.name: plugin.digest for plugin in plugins})
        if self.config.exists():
            self._check_same(config, environment)
            return
        if self.latest.exists():
            raise UserError(f"{self.folder} has checkpoints but no config.toml; choose another --out")
        for plugin in plugins:  # for the record: it is never run from here
            write_atomic(self.folder / "plugins" / plugin.path.name, plugin.code)
        write_json(self.environment, asdict(environment))
        write_atomic(self.config, dump_toml(config).encode())

    def check_place(self) -> None:
        """Raise a UserError where this is no place for a run: the folder of a cache, of trials or of a study."""
        refuse_cache(self.folder)
        for name in MANY:
            if (self.folder / name).exists():
                raise UserError(
                    f"{self.folder} holds {name} and is a folder of trials or of a search; "
                    "choose another --out for a single run"
                )

    def claim(self) -> Lock:
        """The right to train here, which one process has at a time; makes the folder.

        Raises
        ------
        UserError
            Another process has it.
        """
        make_folder(self.folder)
        lock = Lock.acquire(self.folder / TRAINS)
        if lock is None:
            raise UserError(f"another process is training {self.folder}; wait for it, or choose another --out")
        return lock

    def remove(self) -> None:
        """Delete the run that is there, and nothing else that lies in its folder; a person's corrections are kept."""
        if not (self.config.exists() and self.environment.exists()):
            return
        self._put_corrections_aside()
        for name in OWN:
            path = self.folder / name
            with os_errors(path, "delete"):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

    def _put_corrections_aside(self) -> None:
        """Keep ``corrections.jsonl``, hours of a person's work, under the first free name, and say so."""
        path = self.folder / "corrections.jsonl"
        if not path.is_file():
            return
        names = (path.with_name(f"corrections-{number}.jsonl") for number in count(1))
        kept = next(name for name in names if not name.exists())
        with os_errors(path, "move"):
            lines = sum(1 for line in path.read_bytes().splitlines() if line.strip())
            path.rename(kept)
        say(f"note: {counted(lines, 'correction')} of the run that is overwritten: kept in {kept}")

    def _check_same(self, config: Config, environment: Environment) -> None:
        before = recorded_config(self.config)
        for section, values in config.model_dump().items():
            if section == "embed":  # what embedding settings changed is in the cache's fingerprint
                continue
            for key, value in values.items():
                there = getattr(getattr(before, section), key, None)
                if there != value:
                    raise UserError(
                        f"{self.folder} was started with {section}.{key} = {there!r} and {value!r} is asked; "
                        f"use another --out{self._or_overwrite()}"
                    )
        begun = self.begun_with()
        if begun.plugins != environment.plugins:
            raise UserError(
                f"{self.folder} was started with other plugins, or with a file that has changed since; "
                f"the files it was started with are in {self.folder / 'plugins'}; "
                f"use another --out{self._or_overwrite()}"
            )
        if (begun.continues and shown(begun.continues)) != environment.continues:
            raise UserError(
                f"{self.folder} was started {_continuing(begun)} and is asked for {_continuing(environment)}; "
                f"use another --out{self._or_overwrite()}"
            )
        if begun.corrections != environment.corrections:
            raise UserError(
                f"{self.folder} was started with other corrections, or without any; "
                f"use another --out{self._or_overwrite()}"
            )
        if begun.cache.digest != environment.cache.digest:
            if begun.cache.folder == environment.cache.folder and environment.cache.generation:
                raise UserError(
                    f"{self.folder} was trained before its cache changed to {environment.cache.rows:,} rows; "
                    f"go on with --from {self.folder} and another --out{self._or_overwrite()}"
                )
            raise UserError(
                f"{self.folder} was trained on other embeddings than {environment.cache.folder} holds; "
                f"use another --out{self._or_overwrite()}"
            )

    def _or_overwrite(self) -> str:
        return "" if mirror_of(self.folder) else ", or --overwrite to start again"


def refuse_cache(folder: Path) -> None:
    """Raise a UserError where `folder` is that of a cache, or inside it: the cache would not grow any more."""
    if _is_cache(folder):
        raise UserError(f"{folder} is the folder of a cache; give the run a folder of its own by --out")
    for parent in folder.resolve().parents:
        if _is_cache(parent):
            raise UserError(f"{folder} is in the folder of the cache {parent}; give a folder outside of it by --out")


def refuse_single_run(folder: Path, wanted: str) -> None:
    """Raise a UserError where `folder`, asked for `wanted`, is that of a single run."""
    if RunFolder(folder).config.exists():
        raise UserError(f"{folder} is the folder of a single run; choose another --out for {wanted}")


def _is_cache(folder: Path) -> bool:
    """Whether there is a cache, damaged ones too: other programs write files of the manifest's name."""
    if not (folder / MANIFEST).exists():
        return False
    try:
        Manifest.read(folder)
    except CacheError:
        return any(folder.glob("shard-*"))
    return True


def _continuing(environment: Environment) -> str:
    return f"--from {environment.continues}" if environment.continues else "without --from"


def write_json(path: Path, value: object) -> None:
    """Write `value` as readable JSON, atomically; NaN becomes null."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n"
    # A byte of a path that is not UTF-8 becomes \udcXX, which JSON reads back.
    write_atomic(path, text.encode("utf-8", "backslashreplace"))


def read_json(path: Path) -> Any:
    """The JSON in `path`; a UserError where it is missing or damaged."""
    with os_errors(path, "read"):
        if not path.exists():
            raise UserError(f"{path} does not exist; is {path.parent} a run folder of `temi train-heads`?")
        data = path.read_bytes()
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it or train again") from None


def finite(value: object) -> object:
    """`value` with every number that JSON has no word for replaced by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def describe_environment(cache: EmbeddingCache, device: torch.device) -> Environment:
    """Versions, revision and device of this process, and what the cache is."""
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        threads=torch.get_num_threads(),
        arithmetic=arithmetic(device),
        packages={name: found for name in PACKAGES if (found := _version(name))},
        revision=_git_revision(),
        cache=TrainedCache(
            cache.place,
            cache.digest,
            cache.manifest.fingerprint,
            cache.rows,
            cache.manifest.generation,
        ),
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
