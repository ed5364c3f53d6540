"""Standard and adversarial training: ``train(model, dataset, config)``."""

from rctaf.training.loop import Diverged, epochs_done, train
from rctaf.training.methods import Method, make_method

__all__ = ["Diverged", "Method", "epochs_done", "make_method", "train"]
