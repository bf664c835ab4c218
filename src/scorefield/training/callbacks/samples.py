"""Grids of samples from fixed noise, and the trajectory of a few of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from scorefield.data import Data
from scorefield.errors import NumericalError
from scorefield.models import Cond, ScoreModel
from scorefield.noise import IndexedNoise
from scorefield.records.figures import scatter2d
from scorefield.records.pictures import image_grid, save_gif, save_png
from scorefield.records.result import Measurement
from scorefield.records.rundir import RunDir
from scorefield.samplers import FlowSampler, Sampler, Trace
from scorefield.training.callbacks.evaluator import Evaluator, Occasion
from scorefield.training.loggers import log_picture

AnySampler = Sampler | FlowSampler
Guidance = Callable[..., ScoreModel]  # a model's guided form, from the model


def guided(model: ScoreModel, guidance: Guidance | None, device: torch.device) -> ScoreModel:
    """The model that is sampled from: guided, where a guidance is given."""
    return guidance(model).to(device) if guidance else model


def draw(
    model: ScoreModel,
    sampler: AnySampler,
    shape: tuple[int, ...],
    indices: list[int],
    seed: int,
    device: torch.device,
    cond: Cond | None = None,
    trace: Trace | None = None,
) -> tuple[Tensor, float]:
    """Samples ``indices`` of the evaluation set named by ``seed``, in model space, and the evaluations per sample.

    Sample i depends on (seed, i) alone: not on the batch it is drawn in, nor on the number of processes.
    """
    noise = IndexedNoise(seed, "samples", indices)
    start = model.schedule.prior_like(torch.empty(len(indices), *shape, device=device), noise)
    try:
        samples = sampler(model, start, cond, noise, trace)
    except NumericalError as error:
        where = f"samples {indices[0]} to {indices[-1]} of seed {seed}"
        raise error.within(where, start=start, indices=torch.tensor(indices)) from None
    return samples.x, samples.nfe


@dataclass
class Frames:
    """Collects at most about ``most`` evenly spaced states of a trajectory, denoised only by the sampler itself."""

    steps: int
    most: int = 40
    states: list[Tensor] = field(default_factory=list)

    def __call__(self, step: int, t: float, x: Tensor) -> None:
        stride = max(1, self.steps // self.most)
        if step % stride == 0 or step >= self.steps:
            self.states.append(x.detach().cpu())


def picture(data: Data, x: Tensor, columns: int) -> Image.Image:
    """A grid of images given by their grey levels."""
    return image_grid(data.display(x), columns)


class SampleGrid(Evaluator):
    """Draws the same samples at every validation; at the end also the real data beside them and a trajectory.

    Args:
        run_dir: the run's directory.
        sampler: how samples are drawn.
        seed: the evaluation's seed.
        n: number of samples.
        columns: samples per row.
        every: number of validations from one grid to the next.
        guidance: makes the guided model of the model; None samples from the model itself.
    """

    def __init__(
        self,
        run_dir: str,
        sampler: AnySampler,
        seed: int = 0,
        n: int = 100,
        columns: int = 10,
        every: int = 1,
        guidance: Guidance | None = None,
    ) -> None:
        super().__init__(every)
        self.guidance = guidance
        self.run_dir = RunDir(Path(run_dir))
        self.sampler, self.seed, self.n, self.columns = sampler, seed, n, columns

    def evaluate(self, occasion: Occasion) -> dict[str, Measurement]:
        if not occasion.trainer.is_global_zero:
            return {}
        data = occasion.data.data
        frames = Frames(getattr(self.sampler, "moves", 1))
        x, _ = draw(
            guided(occasion.model, self.guidance, occasion.device),
            self.sampler,
            data.shape,
            list(range(self.n)),
            self.seed,
            occasion.device,
            occasion.wanted(list(range(self.n)), self.guidance),
            trace=frames if occasion.final else None,
        )
        path = self.run_dir.final_samples if occasion.final else self.run_dir.samples_at(occasion.step)
        path.parent.mkdir(parents=True, exist_ok=True)
        truth = occasion.data.test_split.x[: self.n].cpu()
        if len(data.shape) == 3:
            save_png(path, picture(data, data.from_model(x.cpu()), self.columns))
            if occasion.final:
                save_png(self.run_dir.real_samples, picture(data, truth, self.columns))
                states = [picture(data, data.from_model(state), self.columns) for state in frames.states]
                save_gif(self.run_dir.trajectory, states)
        else:
            scatter2d(path, {"data": truth, "samples": data.from_model(x.cpu())})
        log_picture(occasion.trainer, "samples", path)
        return {}
