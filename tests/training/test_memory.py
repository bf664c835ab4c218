"""What is kept from one training step to the next."""

import pytest
import pytorch_lightning as pl

from tests.training.tiny import fit, plane


class Watch(pl.Callback):
    """How many parameters have a gradient, before each forward pass and before each update."""

    def __init__(self):
        self.before_forward, self.before_update = [], []

    @staticmethod
    def _gradients(module):
        return sum(p.grad is not None for p in module.model.parameters())

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before_forward.append(self._gradients(pl_module))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.before_update.append(self._gradients(pl_module))


@pytest.mark.parametrize("batches", [1, 2])
def test_gradients_are_gone_before_the_next_activations_come(tmp_path, batches):
    """But not those that several batches add up to."""
    watch = Watch()
    parts = fit(plane(tmp_path, "steps=3", f"trainer.accumulate_grad_batches={batches}"), None, watch)
    every = sum(p.requires_grad for p in parts.module.model.parameters())
    assert watch.before_update == [every] * 3
    assert watch.before_forward == [every if number % batches else 0 for number in range(3 * batches)]
