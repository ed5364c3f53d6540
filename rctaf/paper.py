"""Numbers as printed in arXiv 2603.23860, for comparison only: nothing here is a result of this book."""

from __future__ import annotations

# Table 1 (CIFAR-10, ResNet-18, one run per row): clean %, AutoAttack %, max|sigma''| digit by digit.
# Which of its three RCT-AF rows is which order is our reading of their order in the table.
TABLE_1: dict[str, tuple[float, float, str | None]] = {
    "relu": (85.23, 51.37, None),
    "leaky_relu": (84.52, 51.24, None),
    "elu": (78.39, 43.11, "1.0"),
    "gelu": (84.88, 51.69, "0.798"),
    "swish": (82.53, 48.08, "0.5"),
    "mish": (82.63, 48.75, "0.362"),
    "rctaf β=0": (86.65, 54.57, "7.0"),
    "rctaf β=1": (87.24, 54.79, "7.0"),
    "rctaf β=2": (86.08, 54.49, "7.0"),
}

# Table 2 (standard training of a ResNet-18 on CIFAR-10, batch 128, 20 epochs, one NVIDIA 2080 Ti): GPU memory in GB,
# training time in minutes. The symbols in the names of its three last rows were lost; this is their order.
TABLE_2: dict[str, tuple[float, float]] = {
    "relu": (0.73, 5.88),
    "leaky_relu": (0.73, 5.92),
    "elu": (0.73, 5.83),
    "selu": (0.73, 5.88),
    "gelu": (0.99, 7.92),
    "mish": (1.25, 6.98),
    "softplus": (0.99, 5.87),
    "swish": (0.99, 5.88),
    "rctaf β=0": (0.99, 6.30),
    "rctaf β=1": (1.25, 6.93),
    "rctaf β=2": (2.30, 8.86),
}
