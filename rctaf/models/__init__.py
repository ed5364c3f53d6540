"""The networks of the experiments, by name; the activation is an argument and is used everywhere."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import nn

from rctaf.activations import RCTAF, LearnedRCTAF, Sharpened, make_activation
from rctaf.config import RunConfig
from rctaf.models.norm import SplitBatchNorm2d, select_norm, start_at_gain
from rctaf.models.resnet import Activation, Block, PreActBlock, ResNet

__all__ = ["NETWORKS", "SplitBatchNorm2d", "from_config", "make_model", "select_norm"]

NETWORKS = ("resnet_small", "resnet18", "preact_resnet18", "wrn_28_10", "wrn_34_10")


def make_model(
    network: str,
    *,
    activation: Activation,
    in_channels: int,
    n_classes: int,
    width: int | None = None,
    norm: str = "batch",
    norm_sets: int = 1,
) -> nn.Module:
    """Build a network; torch's global generator supplies the initial weights.

    ======================  ========  ================  ==========================================
    network                 blocks    width             parameters (RGB images, 10 classes)
    ======================  ========  ================  ==========================================
    ``resnet_small``        3 x 1     8                 20 k (ResNet-8)
    ``resnet18``            4 x 2     64                11,173,962
    ``preact_resnet18``     4 x 2     64                11,172,170
    ``wrn_28_10``           3 x 4     160               36,479,194
    ``wrn_34_10``           3 x 5     160               46,160,474
    ======================  ========  ================  ==========================================

    Args:
        network: one of ``NETWORKS``.
        activation: called once for every place where an activation stands, e.g.
            ``lambda: RCTAF(alpha=14, beta=1)``.
        in_channels: channels of the images.
        n_classes: number of logits.
        width: channels of the first stage (each later stage doubles them); None takes the network's own.
        norm: ``batch``, or ``none``: convolutions then have biases and each residual branch starts at zero.
        norm_sets: independent sets of batch-norm statistics, see :class:`SplitBatchNorm2d`.

    Raises:
        ValueError: an unknown network or norm, or a width below 1.

    >>> model = make_model("resnet18", activation=nn.ReLU, in_channels=3, n_classes=10)
    >>> sum(p.numel() for p in model.parameters())
    11173962
    """
    if network not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {network!r}")
    if width is not None and width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    block: type[Block] | type[PreActBlock] = Block if network in ("resnet_small", "resnet18") else PreActBlock
    if network.startswith("wrn"):
        first = width or 160
        stages, depth = 3, (int(network.split("_")[1]) - 4) // 6
        stem = min(16, first)  # narrower than the stages, as in Zagoruyko and Komodakis (2016)
    elif network == "resnet_small":
        first = stem = width or 8
        stages, depth = 3, 1
    else:
        first = stem = width or 64
        stages, depth = 4, 2
    model = ResNet(
        block,
        tuple(first * 2**stage for stage in range(stages)),
        depth,
        stem,
        final_norm=block is PreActBlock,
        activation=activation,
        in_channels=in_channels,
        n_classes=n_classes,
        norm=norm,
        norm_sets=norm_sets,
    )
    if network.startswith("wrn"):
        _he_init(model, skip_zeroed=norm == "none")
    return model


def _he_init(model: nn.Module, skip_zeroed: bool) -> None:
    """Normal weights of variance 2 / (outputs * area), zero classifier bias, as the original wide ResNets."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not (skip_zeroed and not module.weight.any()):
            outputs, area = module.out_channels, math.prod(module.kernel_size)
            nn.init.normal_(module.weight, 0.0, math.sqrt(2 / (outputs * area)))
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def from_config(config: RunConfig, *, in_channels: int, n_classes: int) -> nn.Module:
    """The network of an experiment, on the CPU, with the initial weights of its seed.

    torch's global generators are left alone.
    """
    activation: Activation = partial(make_activation, config.activation)
    if config.alpha is not None and config.beta is not None:
        activation = partial(LearnedRCTAF if config.alpha_learned else RCTAF, config.alpha, config.beta)
    elif config.sharpness not in (None, 1):
        activation = partial(Sharpened, config.activation, config.sharpness)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(config.seed)  # torch.manual_seed would seed those of all GPUs too
        model = make_model(
            config.network,
            activation=activation,
            in_channels=in_channels,
            n_classes=n_classes,
            width=config.width,
            norm=config.norm,
            norm_sets=config.norm_sets,
        )
    if config.gain is not None and config.gain != 1:
        start_at_gain(model, config.gain)
    return model
