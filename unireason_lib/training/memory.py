"""Memory of a long run on a CPU: what is not needed goes back, and what is kept has a limit.

Replies differ in length, so nearly every forward pass of outcome RL has shapes of its own. oneDNN, which multiplies
matrices for PyTorch on a CPU, keeps a compiled routine for each of the last 1,024 shapes, and the C library keeps the
holes that tensors of many sizes leave behind: without the two lines below a run of the profile ``laptop`` grows to
eight gigabytes, of which fifty megabytes are tensors.
"""

from __future__ import annotations

import ctypes
import os
import sys

ROUTINES = 64
"""Compiled routines that oneDNN keeps; enough for the layers of a model at one shape."""


def limit_routines() -> None:
    """Let oneDNN keep :data:`ROUTINES`; before its first multiplication, and where the environment does not say."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(ROUTINES))


def give_back() -> bool:
    """Hand memory that nobody uses back to the system; False where the C library has no way to (not glibc)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except AttributeError:  # musl
        return False
