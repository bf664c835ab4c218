"""How well a classifier of perturbed samples tells the classes apart, level by level."""

from pathlib import Path

import torch
import torch.distributed as dist

from scorefield.models import Classifier
from scorefield.noise import IndexedNoise
from scorefield.records.figures import curves
from scorefield.records.result import Measurement
from scorefield.records.rundir import RunDir
from scorefield.training.callbacks.evaluator import Evaluator, Occasion
from scorefield.training.datamodule import shard
from scorefield.training.loggers import log_picture


class ClassAccuracy(Evaluator):
    """Fraction of held-out examples that a `Classifier` gives their class, at each of several noise levels.

    The levels are equally spaced in ln(sigma / alpha) and the noise of example i depends on (seed, i) alone. The value
    is the accuracy at the smallest level; the mean over all of them and each are recorded beside it.

    Args:
        run_dir: the run's directory.
        levels: number of noise levels, >= 2.
        n: number of examples; None takes the whole split.
        batch_size: examples at once; changes the speed only.
        seed: the evaluation's seed.
        every: number of validations from one evaluation to the next; 0 leaves only the final one.
    """

    def __init__(
        self,
        run_dir: str,
        levels: int = 12,
        n: int | None = None,
        batch_size: int = 512,
        seed: int = 0,
        every: int = 1,
    ) -> None:
        super().__init__(every)
        self.run_dir = RunDir(Path(run_dir))
        self.levels, self.n, self.batch_size, self.seed = levels, n, batch_size, seed

    @torch.no_grad()
    def evaluate(self, occasion: Occasion) -> dict[str, Measurement]:
        model, data = occasion.model, occasion.data.data
        if not isinstance(model, Classifier):
            return {}
        split = occasion.data.test_split if occasion.final else occasion.data.validation_split
        n = len(split) if self.n is None else min(self.n, len(split))
        schedule = model.schedule
        times = schedule.geometric_times(schedule.t_min, schedule.t_max, self.levels).to(occasion.device)
        right = torch.zeros(self.levels, dtype=torch.float64, device=occasion.device)
        for batch in shard(n, occasion.trainer.global_rank, occasion.trainer.world_size, self.batch_size):
            rows = split[torch.tensor(batch, dtype=torch.long)].to(occasion.device)
            assert rows.labels is not None  # a conditional run has them
            x = data.to_model(rows.x, IndexedNoise(self.seed, "dequantise/0", batch))
            noise = IndexedNoise(self.seed, "accuracy", batch)
            for level, time in enumerate(times):
                t = time.expand(len(x)).contiguous()
                found = model.logits(schedule.perturb(x, t, noise.normal_like(x)), t).argmax(1)
                right[level] += found.eq(rows.labels).sum()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(right)
        accuracy = right.cpu() / n
        if occasion.trainer.is_global_zero:
            path = self.run_dir.figure("class_accuracy")
            path.parent.mkdir(parents=True, exist_ok=True)
            chance = {"chance": 1 / (data.classes or 1)}
            levels = schedule.ratio(times).log10()
            curves(
                path, {"classifier": (levels, accuracy)}, x_label="log10(σ / α)", y_label="accuracy", references=chance
            )
            log_picture(occasion.trainer, "class_accuracy", path)
        protocol: dict[str, object] = {
            "by_level": accuracy.tolist(),
            "mean_over_levels": float(accuracy.mean()),
            "levels": self.levels,
            "n": n,
            "split": "test" if occasion.final else "validation",
            "seed": self.seed,
        }
        return {"class_accuracy": Measurement(float(accuracy[0]), protocol)}
