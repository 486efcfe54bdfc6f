"""What a process holds is what it asked for: freed blocks go back to the system at once, and threads are small.

As users run it a pass keeps freed blocks (`keep_freed_memory`), and then glibc's heap decides what a process holds. torch
takes its blocks by posix_memalign, for which glibc before 2.38 does not find a freed block of the same size if a small
object has come to lie beside it (its bug 14581): one 4 MB buffer, freed and asked for 20 times, grows the heap by 4 to
74 MiB. Where small objects lie differs from process to process, so the same pass holds 120 MiB or 250.
"""

import ctypes
import threading

from temi.pipeline.device import keep_freed_memory
from temi.pipeline.heads import trainer

TRIM_THRESHOLD, MMAP_THRESHOLD, OWN_MAPPING = -1, -3, 2**16  # of <malloc.h>; a block of so many bytes is a mapping


def return_what_is_freed() -> None:
    """From now on a block of 64 KiB or more is a mapping of its own, and a new thread's stack takes 1 MiB, not 8."""
    threading.stack_size(2**20)
    trainer.keep_freed_memory = lambda: None
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)  # a library without it returns blocks anyway
    mallopt(TRIM_THRESHOLD, OWN_MAPPING)
    mallopt(MMAP_THRESHOLD, OWN_MAPPING)


def keep_what_is_freed() -> None:
    """Again as users run it."""
    trainer.keep_freed_memory = keep_freed_memory
    keep_freed_memory()
