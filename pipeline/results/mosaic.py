"""A mosaic of a run's clusters as HTML for a notebook: pictures of the most confident images, no script."""

import base64
import io
from html import escape

import pandas as pd

from temi.cache.words import counted
from temi.pipeline.errors import UserError
from temi.pipeline.images import ImageSource, UnreadableImage
from temi.pipeline.images.decode import picture
from temi.pipeline.results.corrections import REMOVED
from temi.pipeline.results.names import display_name

SHOWN, EACH = 24, 6  # clusters, the largest ones, and pictures of each
SIDE, QUALITY = 72, 60  # pixels of the longer side, and of WebP
CARD = "display:inline-block;vertical-align:top;margin:4px;padding:6px;border:1px solid #8886;border-radius:6px"


def mosaic(assignments: pd.DataFrame, names: list[str], images: ImageSource | None) -> str:
    """A card for each of the largest clusters; without `images`, cards without pictures."""
    sizes = assignments.loc[assignments["cluster"] != REMOVED, "cluster"].value_counts()
    cards = [_card(assignments, names, images, int(cluster)) for cluster in sizes.index[:SHOWN]]
    more = f"<p>and {counted(len(sizes) - SHOWN, 'smaller cluster')}</p>" if len(sizes) > SHOWN else ""
    told = f"{counted(len(assignments), 'image')} in {counted(len(sizes), 'cluster')}"
    return f"<div><p>{told}</p>{''.join(cards)}{more}</div>"


def _card(assignments: pd.DataFrame, names: list[str], images: ImageSource | None, cluster: int) -> str:
    members = assignments[assignments["cluster"] == cluster]
    surest = members.sort_values("confidence", ascending=False, kind="stable")["row"].head(EACH).tolist()
    pictures = "".join(_picture(images, row) for row in surest) if images is not None else ""
    width = (SIDE + 2) * (EACH // 2)
    heading = f"<b>{escape(display_name(cluster, names))}</b> {len(members):,}"
    return f'<div style="{CARD};width:{width}px">{heading}<br>{pictures}</div>'


def _picture(images: ImageSource, row: int) -> str:
    """One image in the page itself; nothing where it cannot be read."""
    buffer = io.BytesIO()
    try:
        seen = picture(images.read(row))
    except (UnreadableImage, UserError):
        return ""
    seen.thumbnail((SIDE, SIDE))
    seen.save(buffer, "WEBP", quality=QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(images.keys[row], quote=True)}" src="data:image/webp;base64,{data}" style="margin:1px">'
