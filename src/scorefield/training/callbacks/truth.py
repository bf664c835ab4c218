"""How far a model is from a density that is known: for the toys whose mixture is written down."""

import math
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from scorefield.data import Mixture
from scorefield.errors import UserError
from scorefield.metrics.truth import fisher_divergence, lattice, normalised, total_variation
from scorefield.models import DensityModel, MixtureModel
from scorefield.noise import IndexedNoise
from scorefield.records.figures import density2d
from scorefield.records.result import Measurement
from scorefield.records.rundir import RunDir
from scorefield.schedules import Schedule
from scorefield.training.callbacks.evaluator import Evaluator, Occasion
from scorefield.training.datamodule import shard
from scorefield.training.loggers import log_picture


def truth_of(data: object, schedule: Schedule) -> MixtureModel:
    """The exact model of a mixture in model space, perturbed by a schedule.

    Raises:
        UserError: the data are no mixture.
    """
    if not isinstance(data, Mixture):
        raise UserError(
            f"{getattr(data, 'name', data)} has no density in closed form at every noise level; use data=mixture or "
            "data=ncsn_mixture, or leave the comparison with the truth away (callbacks.fisher=null)"
        )
    means = data.transform.forward(data.means)
    scale = (data.transform.log_abs_det(data.means) / data.means.shape[1]).exp()  # the transform is a similarity
    return MixtureModel(schedule, data.weights, means, data.variances * scale.square())


class FisherDivergence(Evaluator):
    """E |s - grad log p_t|^2 / 2 on test examples perturbed to t, against the data's own mixture.

    Example i is perturbed by noise that depends on (seed, i) alone.

    Args:
        t: the time; None takes the schedule's t_min.
        n: number of examples.
        batch_size: examples at once; changes the speed only.
        seed: the evaluation's seed.
        every: number of validations from one evaluation to the next; 0 leaves only the final one.
    """

    def __init__(
        self, t: float | None = None, n: int = 2000, batch_size: int = 1000, seed: int = 0, every: int = 1
    ) -> None:
        super().__init__(every)
        self.t, self.n, self.batch_size, self.seed = t, n, batch_size, seed

    @torch.no_grad()
    def evaluate(self, occasion: Occasion) -> dict[str, Measurement]:
        data, schedule = occasion.data.data, occasion.model.schedule
        truth = truth_of(data, schedule).to(occasion.device)
        split = occasion.data.test_split if occasion.final else occasion.data.validation_split
        n, t = min(self.n, len(split)), schedule.t_min if self.t is None else self.t
        sums = torch.zeros(3, dtype=torch.float64, device=occasion.device)
        for batch in shard(n, occasion.trainer.global_rank, occasion.trainer.world_size, self.batch_size):
            rows = split[torch.tensor(batch, dtype=torch.long)].to(occasion.device)
            x = data.to_model(rows.x, IndexedNoise(self.seed, "dequantise/0", batch))
            times = torch.full((len(x),), t, dtype=torch.float64, device=x.device)
            x_t = schedule.perturb(x, times, IndexedNoise(self.seed, "fisher", batch).normal_like(x))
            given = occasion.given(rows)
            exact = truth(x_t, times, given).score
            error = fisher_divergence(occasion.model(x_t, times, given).score, exact)
            size = fisher_divergence(torch.zeros_like(exact), exact)
            sums += torch.stack([error.sum(), error.square().sum(), size.sum()])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        mean, square, of_zero = (float(total) / n for total in sums)
        protocol = {
            "standard_error": math.sqrt(max(square - mean**2, 0) / n),
            "of_zero": of_zero,  # what a model whose score is 0 would have
            "t": t,
            "sigma": float(schedule.sigma(torch.tensor([t], dtype=torch.float64))),
            "n": n,
            "split": "test" if occasion.final else "validation",
            "seed": self.seed,
        }
        return {"fisher_divergence": Measurement(mean, protocol, "less")}


class TotalVariation(Evaluator):
    """Total variation distance on a grid between the model's normalised density and the data's own mixture.

    The density is exp(-E) divided by its sum over the grid, so what the model puts outside of the grid does not count:
    choose it wide.

    Args:
        run_dir: the run's directory; the two densities are drawn there at the end.
        half_width: the grid covers [-half_width, half_width]^2, > 0, in model space.
        side: cells on a side, >= 2.
        t: the time; None takes the schedule's t_min.
        every: number of validations from one evaluation to the next; 0 leaves only the final one.
    """

    def __init__(
        self, run_dir: str, half_width: float = 8.0, side: int = 200, t: float | None = None, every: int = 1
    ) -> None:
        super().__init__(every)
        if half_width <= 0:
            raise ValueError(f"half_width={half_width} must be positive")
        self.run_dir = RunDir(Path(run_dir))
        self.half_width, self.side, self.t = half_width, side, t

    @torch.no_grad()
    def evaluate(self, occasion: Occasion) -> dict[str, Measurement]:
        model = occasion.model
        if not isinstance(model, DensityModel):
            raise UserError(
                f"a {type(model).__name__} has no density that could be normalised on a grid; use model=energy, or "
                "callbacks.total_variation=null"
            )
        t = model.schedule.t_min if self.t is None else self.t
        points, area = lattice(-self.half_width, self.half_width, self.side)
        truth = truth_of(occasion.data.data, model.schedule)

        def density(of: DensityModel, x: Tensor) -> Tensor:
            times = torch.full((len(x),), t, dtype=torch.float64, device=x.device)
            energies = [of.energy(part, times[: len(part)]).double().cpu() for part in x.split(20_000)]
            return normalised(torch.cat(energies), area)

        exact, found = density(truth, points), density(model, points.float().to(occasion.device))
        if occasion.final and occasion.trainer.is_global_zero:
            path = self.run_dir.figure("density")
            path.parent.mkdir(parents=True, exist_ok=True)
            w = self.half_width
            image, target = (values.reshape(self.side, self.side).T for values in (found, exact))
            density2d(path, image, (-w, w, -w, w), label="density of the model", truth=target)
            log_picture(occasion.trainer, "density", path)
        protocol = {"half_width": self.half_width, "side": self.side, "t": t}
        return {"total_variation": Measurement(total_variation(found, exact, area), protocol, "less")}
