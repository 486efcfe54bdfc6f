"""Every setting of both stages, in one place: typed, frozen, and read from TOML.

Precedence: the defaults below < ``--config FILE`` < ``--set section.key=value``. An unknown key is an error.
"""

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from temi.cache.files import first_problem
from temi.cache.schema import MAX_VIEWS
from temi.pipeline.errors import UserError
from temi.pipeline.features.kinds import Kind
from temi.pipeline.registry import OBJECTIVES, REGULARIZERS, STARTS

LARGEST = 3e38  # that float32 holds: heads compute in it


class Word(str):
    """What stands without quotes behind ``--set section.key=``, such as ``.5``: a number where one is needed."""


def _number(value: object) -> object:
    """Refuse what pydantic would make a number of: true and false, and a text in quotes."""
    if isinstance(value, bool) or (isinstance(value, str) and not isinstance(value, Word)):
        raise PydanticCustomError("number", "Input should be a number")
    return value


NUMBER = BeforeValidator(_number)  # behind what bounds a number, which pydantic then tells of in its own words
Fraction = Annotated[float, Field(ge=0.0, le=1.0), NUMBER]
Positive = Annotated[float, Field(gt=0.0, le=LARGEST, allow_inf_nan=False), NUMBER]
NonNegative = Annotated[float, Field(ge=0.0, le=LARGEST, allow_inf_nan=False), NUMBER]
Count = Annotated[int, Field(ge=1, lt=2**31), NUMBER]
CountOrZero = Annotated[int, Field(ge=0), NUMBER]
# As NumPy and scikit-learn take it; torch is given a million times that.
Seed = Annotated[int, Field(ge=0, lt=2**32), NUMBER]
SEEDS = ("train.seed", "start.seed", "pairs.seed")  # of stage two


PER_TRIAL = "per trial"
"""Marks a setting in which the trials of one pass may differ; trials that differ in another train in passes apart."""

FractionPerTrial = Annotated[Fraction, PER_TRIAL]
PositivePerTrial = Annotated[Positive, PER_TRIAL]
NonNegativePerTrial = Annotated[NonNegative, PER_TRIAL]


class Section(BaseModel):
    """A frozen table of settings; an unknown key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class EmbedConfig(Section):
    """Stage one: what changes the numbers in a cache, and how fast it is filled."""

    backbone: str = Field(
        "facebook/dinov2-base",
        description="Hugging Face id, local folder, efficientnet-lite0, 1 or 2, or a name that a --plugin registers",
    )
    revision: str | None = Field(None, description="Hugging Face revision; empty: the newest, resolved to a commit")
    pooling: Literal["cls", "mean", "cls+mean"] = Field("cls", description="how tokens become one vector")
    image_size: Annotated[int, Field(ge=16), NUMBER] | None = Field(
        None, description="side of the square that the encoder sees; empty: the encoder's own; small images want less"
    )
    views: Annotated[int, Field(ge=0, le=MAX_VIEWS), NUMBER] = Field(2, description="augmented views per image, V")
    crop_scale: tuple[Fraction, Fraction] = Field((0.25, 1.0), description="area of a view's random crop")
    flip: Fraction = Field(0.5, description="probability of a horizontal flip of a view")
    turn: Fraction = Field(0.0, description="probability of a turn of a view by 90, 180 or 270 degrees")
    jitter: Fraction = Field(0.4, description="strength of a view's color jitter: brightness, contrast, saturation")
    seed: Seed = Field(0, description="view v of row r depends on (seed, r, v) alone")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="of the forward; auto: bf16 on GPU")
    engine: Literal["auto", "torch", "openvino"] = Field(
        "auto", description="computes the forward; auto: on an x86 CPU openvino if it is installed, else torch"
    )
    compile: bool = Field(False, description="run the encoder through torch.compile; needs a C++ compiler")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    batch_size: Literal["auto"] | Count = Field("auto", description="images per forward pass; auto: by device")
    workers: Literal["auto"] | CountOrZero = Field(
        "auto", description="processes that decode images; 0: none; auto: by device and cores"
    )
    shard_rows: Count = Field(4096, description="rows per shard, the unit of resume")
    digest: Literal["names", "content"] = Field(
        "names", description="what tells images from others: names and sizes, or every byte too (reads all files first)"
    )
    max_pixels: Count = Field(180_000_000, description="an image with more pixels is refused as a decompression bomb")


class NeighborConfig(Section):
    """Mining: the cosine neighbors of every row, itself excluded."""

    k: Count = Field(15, description="neighbors per row, K")
    scale: Kind = Field("whiten50", description="of the embeddings that are compared; see pipeline/features/scaling.py")


class HeadConfig(Section):
    """The clustering heads of one trial."""

    kind: Literal["published", "linear", "mlp-bn"] = Field("linear", description="see pipeline/heads/stack.py")
    count: Count = Field(6, description="heads, H")
    clusters: Annotated[Count, PER_TRIAL] = Field(10, description="clusters, C")
    scale: Kind = Field("whiten50", description="of the embedding that heads read; see pipeline/features/scaling.py")
    hidden: Count = Field(512, description="width of the first hidden layer (published, mlp-bn)")
    bottleneck: Count = Field(256, description="width of the second hidden layer (published)")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0), NUMBER] = Field(0.1, description="of mlp-bn")


class ObjectiveConfig(Section):
    """What a step minimizes; see pipeline/heads/losses.py for the equations.

    Objectives and regularizers of a plugin bring settings of their own, which stand here beside the others.
    """

    model_config = ConfigDict(frozen=True, extra="allow", validate_default=True)

    name: Annotated[str, PER_TRIAL] = Field(
        "temi", description="objective: temi, pmi, wmi, scan, beta-mi, or that of a plugin"
    )
    beta: PositivePerTrial = Field(1.0, description="exponent of the teacher-student agreement; the paper's: 0.6")
    marginal_power: NonNegativePerTrial = Field(
        1.0, description="rho: p(c)^rho stands for p(c); 1 is the paper's, 0 does not balance clusters"
    )
    student_temperature: PositivePerTrial = Field(0.1, description="softmax temperature of the student, tau")
    teacher_temperature: PositivePerTrial = Field(0.1, description="softmax temperature of the teacher")
    marginal_momentum: FractionPerTrial = Field(0.9, description="EMA momentum of p(c)")
    scan_entropy: NonNegativePerTrial = Field(5.0, description="alpha of the scan objective's entropy term")
    regularizer: str = Field("none", description="added term: none, batch-entropy, sample-entropy, or that of a plugin")
    regularizer_weight: NonNegativePerTrial = Field(5.0, description="lambda of the added term")


class StartConfig(Section):
    """Where heads begin; see pipeline/start/find.py."""

    kind: str = Field("pool", description="pool: at several cuts of the rows; random; or the start of a plugin")
    seed: Annotated[Seed, PER_TRIAL] = Field(0, description="of the cuts")
    steps: Count = Field(200, description="in which heads learn the partitions")
    lr: Positive = Field(1e-2, description="peak learning rate of those steps")
    batch_size: Count = Field(1024, description="images per such step")


class TeacherConfig(Section):
    """The teacher is an EMA of the student; its momentum follows a cosine from start to end."""

    momentum: FractionPerTrial = Field(0.99, description="at the first step")
    final_momentum: FractionPerTrial = Field(0.99, description="at the last step")


class OptimizerConfig(Section):
    """AdamW with linear warm-up and cosine decay."""

    lr: PositivePerTrial = Field(2e-3, description="peak learning rate")
    min_lr: NonNegativePerTrial = Field(1e-6, description="at the end of the cosine")
    schedule: Annotated[Literal["cosine", "constant"], PER_TRIAL] = Field("cosine", description="after the warm-up")
    warmup: FractionPerTrial = Field(0.1, description="share of the steps that the warm-up takes")
    weight_decay: NonNegativePerTrial = Field(1e-4, description="decoupled; not on biases and gains")
    clip: NonNegativePerTrial = Field(0.0, description="largest gradient norm of a trial; 0: no clipping")
    freeze_last: Fraction = Field(0.0, description="share of the steps in which the last layer stays as initialized")


class PairConfig(Section):
    """Where the second image of a training pair comes from."""

    source: Literal["neighbors", "views", "neighbors+views", "self"] = Field("neighbors", description="of the partner")
    seed: Seed = Field(0, description="of the batches and pairs; trials of one pass share it, so they see the same")


class TrainConfig(Section):
    """Length, batches and bookkeeping of stage two."""

    batch_size: Count = Field(512, description="pairs per step, B; at most N")
    epochs: NonNegative = Field(
        10.0, description="passes over the rows, of which a pass counts 200,000 at most; min_steps is the floor"
    )
    min_steps: Count = Field(200, description="floor: a small folder is trained as seriously as a large one")
    seed: Annotated[Seed, PER_TRIAL] = Field(0, description="of the initial heads")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    split: str = Field("", description="train on the rows of this split only; empty: train if there is one, else all")
    memory: Positive | None = Field(
        None,
        description="GB of the host's that stage two may use; empty: what is free; beyond, embeddings stay on disk",
    )
    log_every: Count = Field(50, description="steps between lines of metrics.jsonl")
    checkpoint_every: Count = Field(200, description="steps between checkpoints (latest, best)")
    keep_every: CountOrZero = Field(0, description="steps between checkpoints that are kept; 0: none")
    max_skipped: Count = Field(100, description="non-finite steps in a row after which training stops")
    tensorboard: bool = Field(True, description="write TensorBoard events")
    mlflow: str = Field("", description="MLflow store, e.g. sqlite:///mlflow.db or http://host:5000; empty: none")

    def recorded(self, done: int, steps: int) -> bool:
        """Whether the window of metrics is closed after step `done`."""
        return done % self.log_every == 0 or self.checkpointed(done, steps)

    def checkpointed(self, done: int, steps: int) -> bool:
        """Whether a checkpoint follows step `done`."""
        return done % self.checkpoint_every == 0 or done == steps


class Config(Section):
    """All sections; ``configs/default.toml`` lists every key."""

    embed: EmbedConfig = EmbedConfig()
    neighbors: NeighborConfig = NeighborConfig()
    heads: HeadConfig = HeadConfig()
    start: StartConfig = StartConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    teacher: TeacherConfig = TeacherConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    pairs: PairConfig = PairConfig()
    train: TrainConfig = TrainConfig()


def load_config(path: Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """Read settings: defaults, then the TOML file at `path`, then ``section.key=value`` overrides.

    Raises
    ------
    UserError
        The file is missing or not TOML, a key is unknown, or a value has the wrong type or range.
    """
    config = _validated(path, overrides)
    where = f"in {path} or --set" if path else "in --set"
    if config.start.kind != StartConfig().kind:  # defaults are known: a look-up imports all of stage two
        _ = STARTS[config.start.kind]
    if config.objective == ObjectiveConfig():
        return config
    name, added = config.objective.name, config.objective.regularizer
    objective, regularizer = OBJECTIVES[name].settings.keys(), REGULARIZERS[added].settings.keys()
    if both := sorted(objective & regularizer):
        raise UserError(
            f"the objective {name!r} and the regularizer {added!r} both have a setting {both[0]}; "
            "give it another name in one of them"
        )
    own, given = objective | regularizer, config.objective.model_extra or {}
    for name, value in given.items():
        if name not in own:
            raise UserError(f"unknown setting objective.{name} {where}; configs/default.toml lists every key")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"setting objective.{name} {where}: input should be a number, got {value!r}")
        if not abs(value) <= LARGEST:
            raise UserError(
                f"setting objective.{name} {where}: input should be a finite number within {LARGEST:g}, got {value!r}"
            )
    numbers = {name: float(value) for name, value in given.items()}  # 1 and 1.0 are recorded as one setting
    return config.model_copy(update={"objective": config.objective.model_copy(update=numbers)})


def recorded_config(path: Path) -> Config:
    """The settings that a run folder holds; what a plugin named needs no plugin to be read."""
    return _validated(path, ())


def per_trial(config: Config) -> dict[str, set[str]]:
    """Names of the settings in which trials that train beside `config` in one pass may differ, by section."""
    free = {
        section: {name for name, field in type(values).model_fields.items() if PER_TRIAL in field.metadata}
        for section, values in config
    }
    free["objective"] |= set(config.objective.model_extra or ())
    return free


def objective_settings(configs: Sequence[Config]) -> dict[str, list[float]]:
    """Every number of the objective section by name, one per trial, with those of plugins."""
    first = configs[0].objective
    plain = type(first).model_fields.keys() - {"name", "regularizer"}
    values = {name: [getattr(c.objective, name) for c in configs] for name in plain}
    added = REGULARIZERS[first.regularizer].settings
    own = [{**OBJECTIVES[c.objective.name].settings, **added, **(c.objective.model_extra or {})} for c in configs]
    for name in dict.fromkeys(name for trial in own for name in trial):
        # NaN: what a trial's objective does not have must not be read as the default of another's.
        values[name] = [float(trial.get(name, math.nan)) for trial in own]
    return values


def _validated(path: Path | None, overrides: Iterable[str]) -> Config:
    table = read_toml(path, "config file", "--config") if path else {}
    for override in overrides:
        _apply_override(table, override)
    try:
        return Config.model_validate(table)
    except ValidationError as error:
        raise UserError(_first_problem(error, path)) from None


def read_toml(file: Path, what: str, option: str) -> dict[str, Any]:
    """The table in `file`, `what` the user gave by `option`; UserError where it cannot be read."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))  # editors on Windows write a mark first
    except FileNotFoundError:
        raise UserError(f"{what} {file} does not exist; give {option} an existing TOML file") from None
    except OSError as error:
        reason = f"{error.strerror}; give {option} a TOML file that you may read"
        raise UserError(f"{what} {file} cannot be read: {reason}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{what} {file} is not valid TOML: {error}") from None


def texts_of(settings: object) -> list[str]:
    """The `settings` of a call in Python, of which a single text would be read letter by letter."""
    texts = list(settings) if isinstance(settings, Iterable) and not isinstance(settings, str | Mapping) else None
    if texts is None or not all(isinstance(text, str) for text in texts):
        raise UserError(f'settings is a list of texts such as ["heads.count=3"], got {settings!r}')
    return texts


def asked(overrides: Iterable[str]) -> list[str]:
    """The settings that ``section.key=value`` texts name."""
    return [override.partition("=")[0].strip() for override in overrides]


def _apply_override(table: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        raise UserError(f"--set {override!r} is not of the form section.key=value, e.g. --set objective.beta=0.8")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = Word(text.strip())  # such as --set heads.kind=linear
    target = table.setdefault(section, {})
    if not isinstance(target, dict):
        raise UserError(f"--set {override!r}: {section} is not a section of settings")
    target[key] = value


def _first_problem(error: ValidationError, path: Path | None) -> str:
    name, problem = first_problem(error)
    where = f"in {path} or --set" if path else "in --set"
    if problem["type"] == "extra_forbidden":
        return f"unknown setting {name} {where}; configs/default.toml lists every key"
    told = problem["msg"].lower()
    if problem["type"] == "less_than_equal":  # pydantic writes all digits of LARGEST
        told = f"input should be less than or equal to {problem['ctx']['le']:g}"
    return f"setting {name} {where}: {told}, got {problem['input']!r}"


def flatten(table: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The settings in a table of sections, each with its name, ``section.key``."""
    pairs = []
    for key, value in table.items():
        pairs += flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return pairs


def dump_toml(config: Config) -> str:
    """The settings of stage two as TOML text that `load_config` reads back; a cache holds those of its own."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True, exclude={"embed"}))
