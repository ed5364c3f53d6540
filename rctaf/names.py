"""The settings of an experiment in the words of the field."""

from __future__ import annotations

import math

DATASETS = {"digits": "digits", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
_NETWORKS = {  # RunConfig.network: its name, its stages, the channels of the first
    "resnet_small": ("ResNet-8", 3, 8),
    "resnet18": ("ResNet-18", 4, 64),
    "preact_resnet18": ("PreAct-ResNet-18", 4, 64),
    "wrn_28_10": ("WRN-28", 3, 160),
    "wrn_34_10": ("WRN-34", 3, 160),
}
_METHODS = {
    "standard": "standard training",
    "pgd": "PGD-AT",
    "trades": "TRADES",
    "mart": "MART",
    "dajat": "DAJAT",
    "dkl": "DKL",
}
ACTIVATIONS = {
    "rctaf": "RCT-AF",
    "relu": "ReLU",
    "leaky_relu": "Leaky ReLU",
    "elu": "ELU",
    "selu": "SELU",
    "gelu": "GELU",
    "swish": "Swish",
    "mish": "Mish",
    "softplus": "Softplus",
}


def network_name(network: str, width: float | None = None) -> str:
    """A network in words; the channels of its stages where its name does not say them. Other words stay as they are.

    >>> network_name("wrn_28_10", 8), network_name("wrn_28_10"), network_name("resnet_small")
    ('WRN-28-0.5 (8/16/32 channels)', 'WRN-28-10', 'ResNet-8 (8/16/32 channels)')
    """
    if network not in _NETWORKS:
        return network
    name, stages, usual = _NETWORKS[network]
    first = usual if width is None or math.isnan(width) else int(width)
    if name.startswith("WRN"):
        name += f"-{first / 16:g}"  # the widening factor of Zagoruyko and Komodakis
    if first == usual and network != "resnet_small":  # of which there is none that everybody knows
        return name
    return f"{name} ({'/'.join(str(first * 2**stage) for stage in range(stages))} channels)"


def method_name(method: str, auto_views: float | None = None) -> str:
    """A training method in words; DAJAT without AutoAugment views is ACAT. Other words stay as they are.

    >>> method_name("pgd"), method_name("dajat", 2), method_name("dajat", 0)
    ('PGD-AT', 'DAJAT', 'ACAT (DAJAT without AutoAugment views)')
    """
    if method == "dajat" and auto_views == 0:
        return "ACAT (DAJAT without AutoAugment views)"
    return _METHODS.get(method, method)


def activation_name(activation: str) -> str:
    """An activation in words, with its order where it has one. Other words stay as they are.

    >>> activation_name("leaky_relu"), activation_name("rctaf β=1")
    ('Leaky ReLU', 'RCT-AF β=1')
    """
    kind, space, order = activation.partition(" ")
    return ACTIVATIONS.get(kind, kind) + space + order
