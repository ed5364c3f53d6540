"""Three committed digits records, made once more with the code of today (:mod:`rctaf.runs`, ``replay``).

On the machine that made them, with the same code, they come out bit by bit. On another processor, or after any change
of rounding in training, they come out like another seed, and the criterion is that of ``replay``: it cannot see less
than some ten points of accuracy on 500 images, but it sees an attack that does not attack or a network that does not
learn.
"""

import subprocess
import sys

import pytest

RECORDS = {  # all from a clean commit
    "e6e809492c94": "relu, seed 2",
    "2847662b97f8": "order 1 at max|σ''| = 7, seed 2",
    "0302b29fb442": "order 1 at max|σ''| = 4, seed 2",
}


@pytest.mark.parametrize("run_id", RECORDS)
def test_record_replays(run_id):
    done = subprocess.run([sys.executable, "-m", "rctaf.runs", "replay", run_id], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith(("bit-identical:", "within tolerance:"))
