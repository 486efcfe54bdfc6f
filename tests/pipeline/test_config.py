"""Settings: precedence, sentences for mistakes, and that configs/default.toml is the truth."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from temi.pipeline.config import Config, dump_toml, load_config
from temi.pipeline.errors import UserError
from temi.pipeline.plugins import load_plugin
from temi.pipeline.runs.space import DEFAULT_SPACE, check_space, read_space

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
