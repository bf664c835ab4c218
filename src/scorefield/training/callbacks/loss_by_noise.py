"""The training loss at each noise level, on held-out data."""

from pathlib import Path

import torch
import torch.distributed as dist

from scorefield.noise import IndexedNoise
from scorefield.objectives import Denoising
from scorefield.records.figures import loss_by_noise
from scorefield.records.result import Measurement
from scorefield.records.rundir import RunDir
from scorefield.training.callbacks.evaluator import Evaluator, Occasion
from scorefield.training.datamodule import shard
from scorefield.training.loggers import log_picture


class LossByNoise(Evaluator):
    """The denoising loss on the validation split, level by level, and its mean over the levels.

    The levels are equally spaced quantiles of the objective's own time law and the noise of example i depends on
    (seed, i) alone, so the mean is comparable from step to step.

    Args:
        run_dir: the run's directory.
        levels: number of noise levels.
        n: number of validation examples.
        batch_size: examples at once; changes the speed only.
        seed: the evaluation's seed.
        every: number of validations from one evaluation to the next; 0 leaves only the final one.
    """

    def __init__(
        self, run_dir: str, levels: int = 16, n: int = 128, batch_size: int = 256, seed: int = 0, every: int = 1
    ) -> None:
        super().__init__(every)
        self.run_dir = RunDir(Path(run_dir))
        self.levels, self.n, self.batch_size, self.seed = levels, n, batch_size, seed

    @torch.no_grad()
    def evaluate(self, occasion: Occasion) -> dict[str, Measurement]:
        objective = occasion.module.objective
        if not isinstance(objective, Denoising):
            return {}
        split, data, schedule = occasion.data.validation_split, occasion.data.data, occasion.model.schedule
        n = min(self.n, len(split))
        u = (torch.arange(self.levels, dtype=torch.float64, device=occasion.device) + 0.5) / self.levels
        times, _ = objective.times.quantile(u, schedule)
        sums = torch.zeros(3, self.levels, dtype=torch.float64, device=occasion.device)
        for batch in shard(n, occasion.trainer.global_rank, occasion.trainer.world_size, self.batch_size):
            rows = split[torch.tensor(batch, dtype=torch.long)].to(occasion.device)
            x = data.to_model(rows.x, IndexedNoise(self.seed, "dequantise/0", batch))
            labels = occasion.given(rows)
            noise = IndexedNoise(self.seed, "loss", batch)
            for level, t in enumerate(times):
                loss = objective.at(
                    occasion.model, x, t.expand(len(x)), noise.normal_like(x), labels
                ).per_sample.double()
                sums[:, level] += torch.stack([loss.sum(), loss.square().sum(), torch.full_like(t, len(x))])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        mean = sums[0] / sums[2]
        deviation = (sums[1] / sums[2] - mean.square()).clamp(min=0).sqrt()
        if occasion.trainer.is_global_zero:
            path = self.run_dir.figure("loss_by_noise")
            path.parent.mkdir(parents=True, exist_ok=True)
            sigma = schedule.ratio(times)
            loss_by_noise(path, sigma, mean, (mean - deviation).clamp(min=0), mean + deviation, band="one deviation")
            log_picture(occasion.trainer, "loss_by_noise", path)
        protocol = {"n": n, "levels": self.levels, "split": "validation", "seed": self.seed}
        return {"loss": Measurement(float(mean.mean()), protocol)}
