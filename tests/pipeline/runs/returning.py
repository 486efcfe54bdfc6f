"""What a process holds is what it asked for: freed blocks go back to the system at once, and threads are small.

As users run it a pass keeps freed blocks (`keep_freed_memory`), and glibc's heap decides how many. torch takes its
blocks by posix_memalign, which before glibc 2.38 often misses a freed block of the same size (bug 14581): a 4 MB
buffer that is freed and asked for 20 times grows the heap by 31 MiB, by 74 where small objects come between, and by 4
through malloc. What comes between differs from process to process, so one pass of 121 MiB takes anything up to 250.
"""

import threading

from temi.pipeline import device

OWN_MAPPING = 2**16  # bytes: a block of so many is a mapping


def return_what_is_freed() -> None:
    """From now on a block of 64 KiB or more is a mapping of its own, and a new thread's stack takes 1 MiB, not 8."""
    threading.stack_size(2**20)
    device._set_thresholds(trim=OWN_MAPPING, mapped=OWN_MAPPING)
    device._set_thresholds = lambda **_: None
