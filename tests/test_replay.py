"""Five committed digits records, made once more with the code of today (:mod:`rctaf.runs`, ``replay``).

On the machine that made them, with the same code, they come out bit by bit. On another processor, or after any change
of rounding in training, they come out like another seed, and the criterion is that of ``replay``: it cannot see less
than some ten points of accuracy on 500 images, but it sees an attack that does not attack or a network that does not
learn.
"""

import subprocess
import sys

import pytest

RECORDS = {  # all from a clean commit
    "2ee70a417259": "TRADES, order 2 at max|σ″| = 7, seed 1",
    "cc154e1f6be9": "TRADES, GELU, seed 1",
    "3e016d04cf74": "ACAT, order 1 at max|σ″| = 7, seed 0",
    "23a5fbd35782": "DKL, order 1 at max|σ″| = 7, seed 0",
    "cb95755b3b28": "standard training, order 1 at max|σ″| = 7, seed 1",
}


@pytest.mark.parametrize("run_id", RECORDS)
def test_record_replays(run_id):
    done = subprocess.run([sys.executable, "-m", "rctaf.runs", "replay", run_id], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith(("bit-identical:", "within tolerance:"))
