"""How many clusters: easy mixtures, the scores against their definitions, the command."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from mixtures import mixture, write_cache
from typer.testing import CliRunner

from temi.cache import EmbeddingCache
from temi.cli import app
from temi.pipeline.config import StartConfig
from temi.pipeline.errors import UserError
from temi.pipeline.features.features import Features
from temi.pipeline.start.count import (
    Score,
    candidates,
    choose,
    cuts_into,
    estimate_clusters,
    modularity,
    parse_clusters,
)
from temi.pipeline.start.spaces import space_graphs


def estimate(embedding: np.ndarray, lowest: int = 2, highest: int | None = None) -> int:
    return estimate_clusters(Features.of_array(embedding), StartConfig(), lowest, highest).clusters


@pytest.mark.parametrize("clusters", [3, 8, 20])
def test_the_number_of_an_easy_mixture_is_found(clusters: int) -> None:
    embedding, _ = mixture(rows=30 * clusters + 60, dim=32, clusters=clusters, noise=0.3)
    found = estimate(embedding)
    assert abs(found - clusters) <= round(0.12 * clusters)


def test_the_number_of_an_imbalanced_mixture_is_found() -> None:
    embedding, label = mixture(rows=1200, dim=32, clusters=6, noise=0.3)
    keep = np.concatenate([np.flatnonzero(label == c)[: 200 // (c + 1)] for c in range(6)])
    assert abs(estimate(embedding[keep]) - 6) <= 1


def test_the_range_is_respected_and_its_end_is_named() -> None:
    embedding, _ = mixture(rows=400, dim=32, clusters=10, noise=0.3)
    count = estimate_clusters(Features.of_array(embedding), StartConfig(), 3, 6)
    assert [score.clusters for score in count.curve] == [3, 4, 5, 6]
    assert count.clusters == 6
    assert "the range ends at 6" in count.reason


def test_modularity_is_that_of_its_definition() -> None:
    random = np.random.default_rng(0)
    weight = np.triu(random.random((120, 120)) * (random.random((120, 120)) < 0.1), 1)
    weight += weight.T
    label = np.repeat(np.arange(3), 40)
    degree = weight.sum(1)
    expected = (weight - np.outer(degree, degree) / weight.sum()) / weight.sum()
    found = modularity(sp.csr_array(weight), label)
    assert found == pytest.approx(expected[label[:, None] == label].sum())


def test_cuts_have_every_number_that_is_asked_for() -> None:
    embedding, _ = mixture(rows=300, dim=32, clusters=6, noise=0.5)
    [graph] = space_graphs(Features.of_array(embedding), "center", [15])
    numbers = [2, 3, 6, 11, 20]
    assert [len(np.unique(label)) for label in cuts_into(graph, numbers, 0)] == numbers


def test_the_highest_product_is_chosen_and_clearer_scales_are_named() -> None:
    curve = (Score(2, 0.5, 0.3), Score(4, 1.0, 0.4), Score(5, 0.8, 0.6), Score(8, 0.9, 0.7), Score(9, 0.7, 0.6))
    count = choose(curve)
    assert count.clusters == 8
    assert "agreement of the spaces (0.90) times modularity (0.70)" in count.reason
    assert "agree even more on 4:" in count.reason
    assert "widen" not in count.reason
    assert "the range ends at 8" in choose(curve[:4]).reason


def test_two_scales_are_both_said() -> None:
    """Five far groups, each of four that lie near one another."""
    random = np.random.default_rng(0)
    group, part = np.repeat(np.arange(20) // 4, 30), np.repeat(np.arange(20), 30)
    centers = 8 * random.standard_normal((5, 48)), 2.2 * random.standard_normal((20, 48))
    embedding = centers[0][group] + centers[1][part] + random.standard_normal((600, 48))
    count = estimate_clusters(Features.of_array(embedding.astype(np.float32)), StartConfig())
    assert abs(count.clusters - 20) <= 2  # numbers from 12 on are tried in steps of 12 percent
    scores = {score.clusters: score.agreement for score in count.curve}
    assert scores[5] > 0.99


def test_candidates_reach_both_ends_in_rising_steps() -> None:
    numbers = candidates(2, 200)
    assert numbers[:11] == list(range(2, 13))
    assert numbers[-1] == 200
    steps = np.diff(numbers)
    assert (steps > 0).all()
    assert max(b / a for a, b in pairwise(numbers[10:])) < 1.16
    assert candidates(7, 8) == [7, 8]


def test_what_the_option_understands() -> None:
    assert parse_clusters("20") == [20]
    assert parse_clusters("20,50,100") == [20, 50, 100]
    assert parse_clusters("auto") == (2, None)
    assert parse_clusters("auto:5-200") == (5, 200)
    for text in ("0", "-3", "many", "auto:9-5", "auto:1-5", "auto:", "20,", "20,auto"):
        with pytest.raises(UserError, match="neither a number, nor several such as 20,50,100, nor auto"):
            parse_clusters(text)
    with pytest.raises(UserError, match="--clusters names 8 twice; name each once"):
        parse_clusters("4,8,08,16")


def test_too_few_images_are_a_sentence() -> None:
    with pytest.raises(UserError, match="40 images are too few to search 2 to 30 clusters"):
        estimate(mixture(rows=40)[0], 2, 30)
    with pytest.raises(UserError, match="12 images are too few"):
        estimate(mixture(rows=12)[0])
    advice = {12: "give a range that ends at 6 or below, or a number$", 5: "give a number$"}  # never one to be refused
    for rows, sentence in advice.items():
        with pytest.raises(UserError, match=f"{rows} images are too few for auto, which needs 30; {sentence}"):
            estimate(mixture(rows=rows)[0])


def test_labels_do_not_count(tmp_path: Path) -> None:
    embedding, label = mixture(rows=300, dim=32, clusters=5, noise=0.6)
    counts = []
    for name, given in (("true", label), ("shuffled", np.random.default_rng(0).permutation(label))):
        cache = write_cache(tmp_path / name, embedding, given)
        counts.append(estimate_clusters(Features.of_cache(cache, np.arange(300)), StartConfig()))
    assert counts[0] == counts[1]


def test_the_command_prints_and_keeps_the_estimate(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", mixture(rows=300, dim=32, clusters=5, noise=0.3)[0])
    arguments = ["train-heads", str(tmp_path / "cache"), "--out", str(tmp_path / "run"), "--clusters", "auto:2-12"]
    quick = ["heads.count=2", "train.min_steps=20", "train.epochs=0", "start.steps=20", "train.tensorboard=false"]
    options = [option for setting in quick for option in ("--set", setting)]
    shown = CliRunner().invoke(app, [*arguments, *options])
    assert shown.exit_code == 0, shown.output
    assert "5 clusters: agreement of the spaces" in " ".join(shown.output.split())
    curves = [line for line in shown.output.splitlines() if "highest" in line and "█" in line]
    assert [len(line.split()[1]) for line in curves] == [11, 11]  # a bar for each number
    assert all("█" in line for line in curves)
    kept = json.loads((tmp_path / "run/clusters.json").read_text())
    assert kept["clusters"] == 5
    assert len(kept["curve"]) == 11
    assert json.loads((tmp_path / "run/training.json").read_text())["clusters"] == 5
    assert EmbeddingCache.open(tmp_path / "cache").labels.max() == -1
    again = CliRunner().invoke(app, [*arguments, *options])  # a finished run is left as it is
    assert again.exit_code == 0, again.output
    refused = CliRunner().invoke(app, [*arguments[:-1], "several"])
    assert refused.exit_code == 2
    assert "--clusters 'several' is neither a number" in refused.stderr
