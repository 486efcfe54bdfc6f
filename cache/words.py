"""Numbers in messages, as a person says them."""


def counted(number: int, noun: str, nouns: str = "") -> str:
    """``1 image``, ``1,797 images``; `nouns` is the plural of what takes more than an s."""
    return f"{number:,} {noun if number == 1 else nouns or f'{noun}s'}"
