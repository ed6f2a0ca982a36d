"""What a long run on a CPU keeps is limited, and the rest goes back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from unireason_lib.training.memory import ROUTINES

SAY = "import os, unireason_lib.training.rl; print(os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'])"


@pytest.mark.parametrize(("given", "found"), [(None, str(ROUTINES)), ("7", "7")])
def test_the_number_of_routines_is_limited_unless_somebody_said_otherwise(given, found):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    environment = {key: value for key, value in os.environ.items() if key != name}
    environment |= {name: given} if given else {}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", SAY], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == found


HOLES = """
from unireason_lib.training.memory import give_back
held = [bytearray(60_000) for _ in range(5_000)]  # below the size that is handed back by itself
kept = held[::50]
resident = lambda: int(open("/proc/self/statm").read().split()[1])
before = resident()
del held
assert give_back()
print(before, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is another")
def test_holes_between_things_that_stay_go_back_to_the_system():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", HOLES], env=environment, capture_output=True, text=True, check=True
    )
    before, after = map(int, done.stdout.split())
    assert after < 0.5 * before
