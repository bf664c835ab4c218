"""Data for training: a stream of batches that is a pure function of (seed, batch number), and plain evaluation batches.

The whole split lives in memory, on the training device or, where it is too large for that, on the host, from which each
batch is moved as the integers it is stored as; there are no worker processes. Step-based training has no
epochs: the stream is the concatenation of one random order of the split after another, cut into global batches, and
each process takes its share of every global batch.
"""

from collections.abc import Iterator
from functools import cached_property

import pytorch_lightning as pl
import torch
from torch import Tensor

from scorefield.augmentation import Augmentation
from scorefield.data import Data, Split
from scorefield.noise import StreamNoise
from scorefield.training.module import Batch


class TrainingStream:
    """Endless batches of one process.

    Args:
        data: the data set, which maps its own values to model space.
        split: the examples.
        batch_size: examples per global batch, over all processes.
        seed: seed of the order and of the dequantisation.
        rank: number of this process.
        world_size: number of processes; divides ``batch_size``.
        start: number of the first batch.
        device: where batches are made; None is where the split is.
        flip: mirror each image from left to right with probability 1/2.
        dequantise: spread grey levels uniformly over their intervals; otherwise they are the intervals' middles.
        augmentation: what is done to images in model space; a batch then holds its labels; None leaves them alone.
    """

    def __init__(
        self,
        data: Data,
        split: Split,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        device: torch.device | None = None,
        flip: bool = False,
        dequantise: bool = True,
        augmentation: Augmentation | None = None,
    ) -> None:
        if batch_size % world_size:
            raise ValueError(f"data.batch_size={batch_size} counts all processes and must be divisible by {world_size}")
        self.data, self.split, self.batch_size, self.seed = data, split, batch_size, seed
        self.rank, self.world_size, self.start = rank, world_size, start
        self.device = split.x.device if device is None else device
        self.flip, self.dequantise, self.augmentation = flip, dequantise, augmentation
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def indices(self, number: int) -> Tensor:
        """Indices of this process's examples in global batch ``number``."""
        share = self.batch_size // self.world_size
        first = number * self.batch_size + self.rank * share
        pieces, n = [], len(self.split.x)
        while share > 0:
            epoch, offset = divmod(first, n)
            piece = self._order_of(epoch)[offset : offset + share]
            pieces.append(piece)
            first, share = first + len(piece), share - len(piece)
        return torch.cat(pieces)

    def _order_of(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, StreamNoise(self.seed, "order", epoch).permutation(len(self.split.x))
        return self._order

    def batch(self, number: int) -> Batch:
        """Batch ``number`` of this process, in model space."""
        index = self.indices(number).to(self.split.x.device)
        examples = self.split[index].to(self.device)
        noise = StreamNoise(self.seed, "dequantise", self.rank, number)
        x = self.data.to_model(examples.x, noise) if self.dequantise else self.data.observable(examples.x)
        if self.flip:
            coins = StreamNoise(self.seed, "flip", self.rank, number).uniform_like(x[:, :1, :1, :1])
            x = torch.where(coins < 0.5, x.flip(3), x)
        batch = {"x": x, "index": index.to(self.device)}
        if examples.labels is not None:
            batch["label"] = examples.labels
        if self.augmentation is not None:
            noise = StreamNoise(self.seed, "augment", self.rank, number)
            batch["x"], batch["augment_labels"] = self.augmentation(x, noise)
        return batch

    def __iter__(self) -> Iterator[Batch]:
        number = self.start
        while True:
            yield self.batch(number)
            number += 1


class DataModule(pl.LightningDataModule):
    """Training batches, and the split that evaluators read.

    Args:
        data: the data set.
        batch_size: examples per optimiser step and accumulation step, over all processes.
        seed: seed of the order and of the dequantisation.
        examples: train on the first so many examples only; None takes them all.
        resident: keep the training split on the training device; otherwise each batch is moved there.
        flip: in training, mirror each image from left to right with probability 1/2.
        dequantise: in training, spread grey levels uniformly over their intervals; otherwise they are the intervals'
            middles, as the published networks saw them.
        augmentation: in training, what is done to images, of which the model is told; None leaves them alone.

    Raises:
        ValueError: the batch is empty, the data are no images to flip or augment or have no grey levels to spread, or
            images would be flipped with and without the model's knowledge.
    """

    def __init__(
        self,
        data: Data,
        batch_size: int,
        seed: int = 0,
        examples: int | None = None,
        resident: bool = True,
        flip: bool = False,
        dequantise: bool = True,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        if flip and len(data.shape) != 3:
            raise ValueError(f"flip={flip} mirrors images, but examples of {data.name} have shape {list(data.shape)}")
        if augmentation is not None and len(data.shape) != 3:
            raise ValueError(f"augmentation moves images, but examples of {data.name} have shape {list(data.shape)}")
        if augmentation is not None and flip:
            raise ValueError(f"flip={flip} mirrors images untold, which augmentation does and tells; give flip=False")
        if not dequantise and data.levels is None:
            raise ValueError(f"dequantise={dequantise} is about grey levels, and {data.name} holds continuous data")
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        self.examples = examples
        self.resident = resident
        self.flip, self.dequantise, self.augmentation = flip, dequantise, augmentation

    @cached_property
    def train_split(self) -> Split:
        return self.data.train()[: self.examples]

    @cached_property
    def validation_split(self) -> Split:
        return self.data.validation()

    @cached_property
    def test_split(self) -> Split:
        return self.data.test()

    def _trainer(self) -> pl.Trainer:
        assert self.trainer is not None, "a DataModule gives batches inside a Trainer only"
        return self.trainer

    def train_dataloader(self) -> TrainingStream:
        trainer = self._trainer()
        device = trainer.strategy.root_device
        return TrainingStream(
            self.data,
            self.train_split.to(device) if self.resident else self.train_split,
            self.batch_size,
            self.seed,
            trainer.global_rank,
            trainer.world_size,
            start=trainer.fit_loop.total_batch_idx + 1,
            device=device,
            flip=self.flip,
            dequantise=self.dequantise,
            augmentation=self.augmentation,
        )

    # Evaluators read their split themselves, sharded over processes without padding; Lightning's evaluation loops are
    # only the occasion, and run over a single batch of nothing.

    def val_dataloader(self) -> list[Tensor]:
        return [torch.zeros(1)]

    def test_dataloader(self) -> list[Tensor]:
        return [torch.zeros(1)]


def shard(n: int, rank: int, world_size: int, batch_size: int) -> list[list[int]]:
    """Indices rank, rank + W, ... below n of one process, in batches; no padding, so each index occurs exactly once."""
    mine = list(range(rank, n, world_size))
    return [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
