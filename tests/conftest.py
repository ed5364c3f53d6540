"""One torch thread per test process; denormals flushed as in every program of the project."""

import torch

torch.set_num_threads(1)
torch.set_flush_denormal(True)
