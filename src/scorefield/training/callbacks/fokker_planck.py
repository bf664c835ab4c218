"""How far the scores of a model at neighbouring noise levels fit together."""

from pathlib import Path

import torch
import torch.distributed as dist

from scorefield.divergence import Divergence, Exact, Hutchinson
from scorefield.fokker_planck import residual
from scorefield.noise import IndexedNoise
from scorefield.records.figures import residual_by_noise
from scorefield.records.result import Measurement
from scorefield.records.rundir import RunDir
from scorefield.training.callbacks.evaluator import Evaluator, Occasion
from scorefield.training.datamodule import shard
from scorefield.training.loggers import log_picture


class FokkerPlanckResidual(Evaluator):
    """Relative residual of the score Fokker-Planck equation, level by level, and its mean over the levels.

    |d_t s - grad [g^2 / 2 (div s + |s|^2) - f x . s]| / |d_t s| in the root mean square over examples perturbed to each
    level; 0 for scores that fit together (Lai et al. 2023, eq. 8). The levels are equally spaced in ln(sigma / alpha)
    and the noise of example i depends on (seed, i) alone.

    Args:
        run_dir: the run's directory; the curve is drawn there.
        levels: number of noise levels, >= 2.
        n: number of examples.
        batch_size: examples at once; changes the speed only.
        divergence: exact, or by probes, whose variance then adds to the residual; None is exact.
        seed: the evaluation's seed.
        every: number of validations from one evaluation to the next; 0 leaves only the final one.
    """

    def __init__(
        self,
        run_dir: str,
        levels: int = 12,
        n: int = 64,
        batch_size: int = 64,
        divergence: Divergence | None = None,
        seed: int = 0,
        every: int = 0,
    ) -> None:
        super().__init__(every)
        self.run_dir = RunDir(Path(run_dir))
        self.levels, self.n, self.batch_size, self.seed = levels, n, batch_size, seed
        self.divergence = Exact() if divergence is None else divergence

    @torch.no_grad()
    def evaluate(self, occasion: Occasion) -> dict[str, Measurement]:
        data, schedule = occasion.data.data, occasion.model.schedule
        split = occasion.data.test_split if occasion.final else occasion.data.validation_split
        n = min(self.n, len(split))
        times = schedule.geometric_times(schedule.t_min, schedule.t_max, self.levels).to(occasion.device)
        sums = torch.zeros(2, self.levels, dtype=torch.float64, device=occasion.device)
        for batch in shard(n, occasion.trainer.global_rank, occasion.trainer.world_size, self.batch_size):
            rows = split[torch.tensor(batch, dtype=torch.long)].to(occasion.device)
            x = data.to_model(rows.x, IndexedNoise(self.seed, "dequantise/0", batch))
            noise = IndexedNoise(self.seed, "residual", batch)
            for level, time in enumerate(times):
                t = time.expand(len(x)).contiguous()
                x_t = schedule.perturb(x, t, noise.normal_like(x))
                found = residual(occasion.model, x_t, t, occasion.given(rows), self.divergence, noise)
                squares = (part.double().square().sum() for part in (found.value, found.rate))
                sums[:, level] += torch.stack(list(squares))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        relative = (sums[0] / sums[1]).sqrt()
        if occasion.trainer.is_global_zero:
            path = self.run_dir.figure("fokker_planck")
            path.parent.mkdir(parents=True, exist_ok=True)
            residual_by_noise(path, schedule.ratio(times), relative)
            log_picture(occasion.trainer, "fokker_planck", path)
        protocol: dict[str, object] = {
            "by_level": relative.tolist(),
            "levels": self.levels,
            "n": n,
            "divergence": f"probes: {self.divergence.k}" if isinstance(self.divergence, Hutchinson) else "exact",
            "split": "test" if occasion.final else "validation",
            "seed": self.seed,
        }
        return {"fokker_planck_residual": Measurement(float(relative.mean()), protocol, "less")}
