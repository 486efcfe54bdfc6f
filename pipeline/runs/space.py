"""What a search may choose from: ranges and lists of settings, from TOML.

::

    [search.space]
    "objective.beta" = {low = 0.3, high = 1.5}
    "optimizer.lr" = {low = 1e-4, high = 1e-2, log = true}
    "neighbors.k" = {low = 5, high = 50, step = 5}
    "objective.name" = ["temi", "pmi"]
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from temi.pipeline.config import SEEDS, Config, EmbedConfig, load_config, read_toml
from temi.pipeline.errors import UserError
from temi.pipeline.registry import OBJECTIVES, REGULARIZERS
from temi.pipeline.runs.trials import mistakes_in

Value = bool | int | float | str
Point = Mapping[str, Value]

DEFAULT_SPACE = Path(__file__).parents[2] / "configs/search.toml"
FIXED = {
    "heads.clusters": "scores of different numbers of clusters cannot be compared; search one number at a time",
    **dict.fromkeys(SEEDS, "a seed is no setting to choose; --seeds trains every trial with several"),
    **dict.fromkeys(
        (f"embed.{name}" for name in EmbedConfig.model_fields),
        "it is a setting of stage one, and the cache is made; embed a cache for each value, and search each",
    ),
    "train.split": "scores on different rows cannot be compared; search one split at a time",
}
NAMES = ("objective.name", "objective.regularizer")


class Range(BaseModel):
    """Numbers from `low` to `high`, whole ones where both and the step are; `log`: their logarithms are drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @model_validator(mode="after")
    def _rises(self) -> "Range":
        if not self.low < self.high or (self.log and self.low <= 0) or (self.log and self.step is not None):
            raise ValueError("low must be below high, a log range above 0 and without a step")
        if not all(abs(end) <= sys.float_info.max for end in (self.low, self.high)):
            raise ValueError("low and high must be finite numbers")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise ValueError("a step must be above 0, and at most high - low")
        return self

    @property
    def kind(self) -> Literal["int", "float"]:
        """Whether whole numbers are drawn."""
        given = (self.low, self.high, 1 if self.step is None else self.step)
        return "int" if all(isinstance(number, int) for number in given) else "float"


Space = dict[str, Range | list[Value]]


def read_space(file: Path) -> Space:
    """The table ``[search.space]`` of a TOML file.

    Raises
    ------
    UserError
        There is no such table, or an entry is neither a range nor a list.
    """
    table = read_toml(file, "space", "--space")
    try:
        found: Any = table["search"]["space"]
        space = TypeAdapter(Space).validate_python(dict(_without_sections(found)))
    except (KeyError, TypeError, AttributeError):
        space = {}
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise UserError(
            f'"{problem["loc"][0]}" in {file} must be a list of values or a range such as '
            f"{{low = 0.3, high = 1.5, log = true}} ({problem['msg'].lower()})"
        ) from None
    if not space or table.keys() != {"search"} or any(values == [] for values in space.values()):
        raise UserError(
            f"space {file} must hold a table [search.space] and nothing else, with an entry for each setting, "
            'e.g. "objective.beta" = {low = 0.3, high = 1.5}'
        )
    for name, values in space.items():
        if isinstance(values, Range) and values.kind == "float" and _is_whole(name):
            raise UserError(
                f'"{name}" in {file} is a whole number, and so must be low, high and step of its range; '
                'write e.g. "neighbors.k" = {low = 5, high = 50, step = 5}'
            )
    return space


def _without_sections(table: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries of `table` by ``section.key``: such a key without quotes is a table within a table to TOML."""
    for name, value in table.items():
        if name in Config.model_fields and isinstance(value, dict):
            yield from ((f"{name}.{key}", own) for key, own in value.items())
        else:
            yield name, value


def _is_whole(name: str) -> bool:
    """Whether `name` is a setting, ``section.key``, whose values are whole numbers."""
    section, _, key = name.partition(".")
    settings: Any = Config.model_fields[section].annotation if section in Config.model_fields else None
    field = settings.model_fields.get(key) if settings else None
    return field is not None and field.annotation in (int, int | None)


def dump_space(space: Space) -> str:
    """The same as one line of JSON, by which two searches are compared."""
    return json.dumps({name: _plain(values) for name, values in sorted(space.items())})


def _plain(values: Range | list[Value]) -> Any:
    return values.model_dump(exclude_defaults=True) if isinstance(values, Range) else values


def check_space(space: Space, base: Path | None, overrides: Sequence[str]) -> None:
    """Raise a UserError where a setting cannot be searched, is unknown, or has a bound that it must not have."""
    for name, why in FIXED.items():
        if name in space:
            raise UserError(f"{name} cannot be searched: {why}")
    reached: set[str] = set()
    for names in product(*(_choices(space, name) for name in NAMES)):
        named: dict[str, Value] = {name: value for choice in names for name, value in choice.items()}
        for point in ends(space):
            with mistakes_in("[search.space]", base, overrides):
                point_config({**point, **named}, base, overrides)
        reached |= _settings_of(load_config(base, [*overrides, *_overrides(named)]))
    for name in space:
        if name.startswith("objective.") and name.removeprefix("objective.") not in reached:
            raise UserError(f"no objective or regularizer that is searched has the setting {name}; correct its name")


def ends(space: Space) -> Iterator[Point]:
    """Points that hold one setting, at an end of its range or at one of its values."""
    for name, values in space.items():
        for value in (values.low, values.high) if isinstance(values, Range) else values:
            yield {name: value}


def point_config(point: Point, base: Path | None, overrides: Sequence[str], seed: int | None = None) -> Config:
    """The settings of a point; those of an objective or regularizer that it does not name are left out.

    `seed`, where it is given, is that of training and of the start.
    """
    named = _overrides({name: value for name, value in point.items() if name in NAMES})
    own = _settings_of(load_config(base, [*overrides, *named]))
    chosen = {name: value for name, value in point.items() if _applies(name, own)}
    seeds = [f"{section}.seed={seed}" for section in ("train", "start")] if seed is not None else []
    return load_config(base, [*overrides, *_overrides(chosen), *seeds])


def _choices(space: Space, name: str) -> list[dict[str, Value]]:
    values = space.get(name, [])
    return [{name: value} for value in values] or [{}] if isinstance(values, list) else [{}]


def _applies(name: str, own: set[str]) -> bool:
    return not name.startswith("objective.") or name.removeprefix("objective.") in own


def _settings_of(config: Config) -> set[str]:
    """Names in the objective section that mean something to what `config` names."""
    objective, regularizer = OBJECTIVES[config.objective.name], REGULARIZERS[config.objective.regularizer]
    return {*type(config.objective).model_fields, *objective.settings, *regularizer.settings}


def _overrides(point: Point) -> list[str]:
    return [f"{name}={json.dumps(value)}" for name, value in point.items()]
