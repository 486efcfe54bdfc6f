"""Names of the scalings that scaling.py fits; apart from it, as settings are read before torch is imported."""

from typing import Literal

Kind = Literal["none", "l2", "standardize", "center", "root", "whiten25", "whiten50", "views", "joined"]
