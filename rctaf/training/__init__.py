"""Standard and adversarial training: ``train(model, dataset, config)``."""

from rctaf.training.attacks import pgd
from rctaf.training.loop import Diverged, train
from rctaf.training.methods import Method, make_method

__all__ = ["Diverged", "Method", "make_method", "pgd", "train"]
