"""Which device computes."""

import torch

from pipeline.errors import UserError


def pick_device(name: str) -> torch.device:
    """`name` as a device; auto is the first GPU where there is one.

    Raises
    ------
    UserError
        No such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(f"device {name!r} is not available on this machine; use auto, cpu or cuda:N") from None
    return device
