"""Whether the model hub answers: asked once, before libraries that would try for half a minute."""

from functools import cache
from threading import Thread
from urllib.error import HTTPError
from urllib.request import Request, urlopen

PATIENCE = 2.0  # seconds, of which a slow resolver may take all


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
