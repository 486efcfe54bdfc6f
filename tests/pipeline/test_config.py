"""Settings: precedence, sentences for mistakes, and that configs/default.toml is the truth."""

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from temi.pipeline.config import Config, dump_toml, load_config
from temi.pipeline.errors import UserError
from temi.pipeline.plugins import load_plugin
from temi.pipeline.runs.space import DEFAULT_SPACE, check_space, point_config, read_space
from temi.pipeline.runs.trials import as_overrides, plan_trials

CONFIGS = Path(__file__).parents[2] / "configs"


def test_default_toml_names_every_key_with_its_default_and_a_comment() -> None:
    text = (CONFIGS / "default.toml").read_text()
    assert load_config(CONFIGS / "default.toml") == Config()
    table = tomllib.loads(text)
    for section, values in Config().model_dump(mode="json").items():
        for key, value in values.items():
            line = next((line for line in text.splitlines() if line.lstrip("# ").startswith(f"{key} =")), "")
            assert "#" in line.lstrip("# "), f"{section}.{key} has no commented line"
            if value is not None:
                assert key in table[section], f"{section}.{key} is missing"


RECIPES = [path for path in sorted(CONFIGS.glob("*.toml")) if path != DEFAULT_SPACE]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_loads(path: Path) -> None:
    load_config(path)


def test_the_space_that_a_search_has_by_default_is_one() -> None:
    check_space(read_space(DEFAULT_SPACE), None, [])


def test_set_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[heads]\ncount = 3\nclusters = 7\n")
    config = load_config(file, ["heads.clusters=9", "heads.kind=published", "embed.crop_scale=[0.5, 1.0]"])
    assert (config.heads.count, config.heads.clusters, config.heads.kind) == (3, 9, "published")
    assert config.embed.crop_scale == (0.5, 1.0)
    assert config.objective == Config().objective


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("heads.cluster=3", r"unknown setting heads.cluster in --set; configs/default.toml lists every key"),
        ("head.clusters=3", r"unknown setting head in --set"),
        ("heads.clusters=0", r"setting heads.clusters in --set: .*greater than or equal to 1, got 0"),
        ("heads.clusters=many", r"setting heads.clusters in --set: .*integer.*got 'many'"),
        ("heads.kind=deep", r"setting heads.kind in --set: .*'published', 'linear' or 'mlp-bn', got 'deep'"),
        ("train.epochs=inf", r"setting train.epochs in --set: input should be a finite number, got inf"),
        ("train.memory=inf", r"train.memory in --set: .*finite number"),
        ("optimizer.lr=inf", r"optimizer.lr in --set: .*finite number"),
        ("optimizer.min_lr=inf", r"optimizer.min_lr in --set: .*finite number"),
        ("objective.beta=1e39", r"objective.beta in --set: .*less than or equal to 3e\+38, got 1e\+39"),
        ("train.seed=99999999999999999999999", r"setting train.seed in --set: .*less than 4294967296"),
        ("start.seed=-1", r"setting start.seed in --set: .*greater than or equal to 0"),
        ("pairs.seed=4294967296", r"setting pairs.seed in --set: .*less than 4294967296"),
        ("embed.seed=4294967296", r"setting embed.seed in --set: .*less than 4294967296"),
        ("embed.views=4097", r"setting embed.views in --set: .*less than or equal to 4096, got 4097"),
        ("heads.count=2147483648", r"setting heads.count in --set: .*less than 2147483648"),
        ("clusters=3", r"not of the form section.key=value"),
        ("heads.clusters", r"not of the form section.key=value"),
    ],
)
def test_a_wrong_setting_is_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        load_config(None, [override])
    assert "\n" not in str(error.value)


def test_a_whole_number_for_a_setting_of_a_plugin_is_recorded_as_any_other() -> None:
    load_plugin(Path(__file__).parents[2] / "examples/plugins/debiased_icon.py")
    texts = {dump_toml(load_config(None, ["objective.name=icon", f"objective.debias={one}"])) for one in ("1", "1.0")}
    assert len(texts) == 1
    assert "debias = 1.0" in texts.pop()


def test_a_wrong_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_config(tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("[heads\n")
    with pytest.raises(UserError, match="is not valid TOML"):
        load_config(bad)
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not valid TOML"):
        load_config(bad)
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path)


@given(st.text(max_size=20).filter(lambda s: s == s.strip()), st.floats(1e-6, 1e6), st.booleans())
def test_a_dumped_config_reads_back_equal(split: str, lr: float, board: bool) -> None:
    config = Config.model_validate({"train": {"split": split, "tensorboard": board}, "optimizer": {"lr": lr}})
    assert Config.model_validate(tomllib.loads(dump_toml(config))) == config


def test_a_file_of_a_windows_editor_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xef\xbb\xbf[heads]\r\ncount = 3\r\n")
    assert load_config(tmp_path / "c.toml").heads.count == 3
    assert as_overrides(tmp_path / "c.toml") == ["heads.count=3"]


NUMBERS = [
    f"{section}.{name}"
    for section, field in Config.model_fields.items()
    for name, own in field.annotation.model_fields.items()
    if isinstance(own.default, int | float) and not isinstance(own.default, bool)
]
MORE = ["embed.image_size", "embed.batch_size", "embed.workers", "train.memory"]  # a number, or a word, or nothing


@pytest.mark.parametrize("name", [*NUMBERS, *MORE])
def test_a_number_is_a_number_wherever_it_is_given(tmp_path: Path, name: str) -> None:
    section, _, key = name.partition(".")
    for value in ("true", "false", '"20"', '"0.5"'):
        (tmp_path / "c.toml").write_text(f"[{section}]\n{key} = {value}\n")
        (tmp_path / "trials.toml").write_text(f"[grid]\n{name} = [{value}]\n")
        for load in (
            lambda value=value: load_config(None, [f"{name}={value}"]),
            lambda: load_config(tmp_path / "c.toml"),
            lambda: plan_trials(tmp_path / "trials.toml", [], None, []),
            lambda value=value: plan_trials(None, [f"{name}={value}"], None, []),
            lambda value=value: point_config({name: json.loads(value)}, None, []),
        ):
            with pytest.raises(UserError, match=rf"setting {name}\b.*, got (True|False|'20'|'0.5')$"):
                load()


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.min_steps=20", 20),
        ("train.min_steps=2e1", 20),
        ("train.min_steps=0020", 20),
        ("train.epochs=.5", 0.5),
        ("train.epochs=3", 3.0),
        ("embed.batch_size=8", 8),
        ("embed.batch_size=auto", "auto"),
        ("train.split=007", "007"),
        ("embed.revision=.5", ".5"),
    ],
)
def test_a_bare_word_is_a_number_where_one_is_needed(override: str, value: object) -> None:
    section, _, key = override.partition("=")[0].partition(".")
    found = getattr(getattr(load_config(None, [override]), section), key)
    assert (found, type(found)) == (value, type(value))
