"""What confidence and novelty are worth on many real sets: calibration, and images of classes that were left out.

    python benchmarks/trust.py --data FOLDER --results trust.jsonl [--sets a,b]
    python benchmarks/trust.py --results trust.jsonl --table

FOLDER is as in ``benchmarks/sets.py``. Calibration: the default is fitted to all rows; an image is right where its
cluster's class, by the Hungarian match, is its own. Novelty: a quarter of the classes is left out, and half of the
other rows is fitted; of the rest, the left-out classes are to be told from the others, and so are pages of text and of
noise. Labels are read by the scoring and by the choice of what is left out.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from sets import options, read_rows, read_sets, run_or_show
from sklearn.metrics import roc_auc_score

from temi.pipeline.config import EmbedConfig, load_config
from temi.pipeline.encode.backbones import Backbone, load_backbone
from temi.pipeline.encode.forward import embed_rows
from temi.pipeline.evaluate.metrics import confident_accuracy, matched_right
from temi.pipeline.features.features import Features
from temi.pipeline.images.arrays import ArrayImages
from temi.pipeline.progress import quiet
from temi.pipeline.runs.fit import fit_model
from temi.pipeline.runs.model import ClusterModel
from temi.pipeline.runs.novelty import Novelty

BINS = 10
LEFT_OUT = 0.25  # of the classes
SHARES = ("50", "80", "90", "100")
NOVELTY = (
    *(f"auroc {kind} {name}" for kind in ("classes", "text", "noise") for name in ("distance", "doubt", "both")),
    *("flagged classes", "flagged text", "flagged noise", "false alarms"),
)
PAGES = 100  # of text, and of noise
WORDS = ("the", "of", "and", "to", "that", "for", "it", "was", "are", "with", "his", "they", "this", "from", "or")


def fit(embedding: np.ndarray, clusters: int) -> ClusterModel:
    """The default."""
    with quiet():
        return fit_model(Features.of_array(embedding), load_config(None, [f"heads.clusters={clusters}"]))


def expected_error(right: np.ndarray, confidence: np.ndarray) -> float:
    """Expected calibration error (Naeini et al., AAAI 2015) over bins of equally many rows."""
    parts = np.array_split(np.argsort(confidence), BINS)
    return float(sum(len(part) * abs(right[part].mean() - confidence[part].mean()) for part in parts) / len(right))


def calibration(embedding: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """ECE, mean confidence, and ACC of the most confident."""
    cluster, confidence = (t.numpy() for t in fit(embedding, int(label.max()) + 1).assign(torch.from_numpy(embedding)))
    right = matched_right(label, cluster)
    shares = confident_accuracy(label, cluster, confidence)
    return {"ece": expected_error(right, confidence), "confidence": float(confidence.mean())} | shares


def novelty(embedding: np.ndarray, label: np.ndarray, pages: dict[str, np.ndarray]) -> dict[str, float]:
    """AUROC of distance, of doubt and of both as `predict` joins them; and how often its flag is right and wrong."""
    random = np.random.default_rng(0)
    classes = int(label.max()) + 1
    strange = np.isin(label, random.choice(classes, max(1, round(LEFT_OUT * classes)), replace=False))
    trained = ~strange & (random.random(len(label)) < 0.5)
    model = fit(embedding[trained], len(np.unique(label[trained])))
    known = Novelty.fit(model.scaling(torch.from_numpy(embedding[trained]))).asked(model)
    usual = signs(model, known, embedding[~trained & ~strange])
    found = {"false alarms": float(known.is_novel(usual["both"]).mean())}
    for kind, rows in {"": embedding[strange], **pages}.items():
        other = signs(model, known, rows)
        truth = np.repeat([0, 1], [len(usual["both"]), len(rows)])
        for name, score in other.items():
            auroc = roc_auc_score(truth, -np.concatenate([usual[name], score]))
            found[f"auroc {kind or 'classes'} {name}"] = float(auroc)
        found[f"flagged {kind or 'classes'}"] = float(known.is_novel(other["both"]).mean())
    return found


def signs(model: ClusterModel, known: Novelty, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Small for strangers: similarity, how far heads put rows and neighbors together, and both as `predict` has it."""
    near, similarity = known.look(model.scaling(torch.from_numpy(rows)).numpy())
    probability = model.predict_proba(torch.from_numpy(rows)).numpy()
    doubt, both = known.together(probability, near), known.typical(similarity, near, probability)
    return {"distance": similarity, "doubt": doubt, "both": both}


def read_pages(file: Path) -> dict[str, np.ndarray]:
    """Features of pages of text and of noise; drawn and embedded by EfficientNet-Lite0 where `file` is not there."""
    if not file.exists():
        random = np.random.default_rng(0)
        backbone = load_backbone(EmbedConfig(backbone="efficientnet-lite0", device="cpu"))
        made = {
            name: np.concatenate([embedded(backbone, draw(random)) for _ in range(PAGES)])
            for name, draw in (("text", text_page), ("noise", noise_page))
        }
        np.savez(file, **made)
    return dict(np.load(file))


def embedded(backbone: Backbone, page: Image.Image) -> np.ndarray:
    pixels = np.asarray(page.convert("RGB"))
    source = ArrayImages(pixels[None], np.full(1, -1, np.int32), (), {})
    [batch] = embed_rows(backbone, source, [range(1)])
    return batch.embedding.half().numpy()


def text_page(random: np.random.Generator) -> Image.Image:
    """Words in lines, dark on light, of varied size."""
    wide, high, size = (int(random.integers(*ends)) for ends in ((300, 500), (400, 640), (10, 22)))
    page = Image.new("RGB", (wide, high), tuple(random.integers(225, 256, 3).tolist()))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size)
    for top in range(20, high - 20, int(size * 1.4)):
        line = " ".join(random.choice(WORDS, 14))
        while pen.textlength(line, font) > wide - 40:
            line = line[:-1]
        pen.text((20, top), line, fill=tuple(random.integers(0, 60, 3).tolist()), font=font)
    return page


def noise_page(random: np.random.Generator) -> Image.Image:
    """Uniform noise, gray or colored, in grains of 1 to 8 pixels."""
    side, grain, channels = int(random.integers(200, 400)), int(random.choice([1, 2, 4, 8])), int(random.choice([1, 3]))
    grains = random.integers(0, 256, (side // grain, side // grain, channels), dtype=np.uint8)
    page = Image.fromarray(np.repeat(grains, 3 // channels, 2))
    return page.resize((side, side), Image.Resampling.NEAREST)


def measure(arguments: argparse.Namespace) -> None:
    """Append a line for every set that the results do not hold yet."""
    done = {row["set"] for row in read_rows(arguments.results)}
    pages = read_pages(arguments.results.with_suffix(".pages.npz"))
    for name, embedding, views, label in read_sets(arguments.data, arguments.sets):
        if name in done or views is not None or label.max() < 2:  # two classes leave one, which no cut splits
            continue
        row = {"set": name, **calibration(embedding, label), **novelty(embedding, label, pages)}
        with arguments.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table, a set a line, in percent, and the means."""
    columns = ["ece", "confidence", *SHARES, *NOVELTY]
    titles = ["ECE", "mean confidence", *(f"ACC of {share} %" for share in SHARES), *NOVELTY]
    lines = [f"| set | {' | '.join(titles)} |", "|" + "---|" * (len(columns) + 1)]
    lines += [f"| {row['set']} | {' | '.join(f'{100 * row[name]:.1f}' for name in columns)} |" for row in rows]
    means = [100 * np.mean([row[name] for row in rows]) for name in columns]
    return "\n".join([*lines, f"| **mean of {len(rows)}** | {' | '.join(f'**{mean:.1f}**' for mean in means)} |"])


def main() -> None:
    run_or_show(options(__doc__).parse_args(), measure, table)


if __name__ == "__main__":
    main()
