"""All zeros of the score of a mixture, and the sign of its derivative there."""

from dataclasses import dataclass
from pathlib import Path

import torch
from lecture.draws import times
from scipy.optimize import brentq
from torch import Tensor

from scorefield.jacobian import jacobian
from scorefield.models import MixtureModel
from scorefield.records.style import MUTED, PALETTE, sheet
from scorefield.schedules import Constant


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    means: list[float]
    equal: list[float]
    unequal: list[float]
    half_width: float
    nodes: int


def score(model: MixtureModel, x: Tensor) -> Tensor:
    """(B,) -> (B,)."""
    return model(x[:, None], times(x)).score[:, 0]


def zeros(model: MixtureModel, settings: Settings) -> list[float]:
    """Every change of sign on the grid, refined; the grid avoids the places where zeros are expected."""
    half, n = settings.half_width, settings.nodes
    x = torch.linspace(-half, half, n, dtype=torch.float64) + half / n / 3
    signs = score(model, x).sign()
    brackets = [(float(x[i]), float(x[i + 1])) for i in (signs.diff() != 0).nonzero().flatten()]

    def at(point: float) -> float:
        return float(score(model, torch.tensor([point], dtype=torch.float64)))

    return [brentq(at, low, high, xtol=1e-14) for low, high in brackets]


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Zeros of both mixtures, and the derivative at the middle one."""
    means = [[m] for m in settings.means]
    equal, unequal = (MixtureModel(Constant(), w, means, [1.0, 1.0]) for w in (settings.equal, settings.unequal))
    found = {"equal weights": zeros(equal, settings), "weights .2 and .8": zeros(unequal, settings)}
    left, middle, right = found["equal weights"]
    _, moved, _ = found["weights .2 and .8"]
    at = torch.tensor([[middle]], dtype=torch.float64)
    derivative = jacobian(lambda x: equal(x, times(x)).score, at)
    draw(settings, {"equal weights": equal, "weights .2 and .8": unequal}, found, figure)
    return {
        "middle zero, weights .2 and .8": moved,
        "middle zero, equal weights": middle,
        "left zero, equal weights": left,
        "right zero, equal weights": right,
        **{f"zeros of the score, {name}": float(len(points)) for name, points in found.items()},
        "slope of the score at the middle zero, equal weights": float(derivative.detach()),
    }


def draw(settings: Settings, models: dict[str, MixtureModel], found: dict[str, list[float]], figure: Path) -> None:
    """Densities on the left, scores on the right, the zeros marked in both."""
    x = torch.linspace(-settings.half_width, settings.half_width, 801, dtype=torch.float64)
    with sheet(figure, panels=2, width=4.5) as (_, (one, two)):
        for i, (name, model) in enumerate(models.items()):
            at = torch.tensor(found[name], dtype=torch.float64)
            one.plot(x, model.log_prob(x[:, None], times(x)), color=PALETTE[i], label=name)
            one.plot(at, model.log_prob(at[:, None], times(at)), "o", color=PALETTE[i], markersize=4)
            two.plot(x, score(model, x), color=PALETTE[i], label=name)
            two.plot(at, torch.zeros_like(at), "o", color=PALETTE[i], markersize=4)
        two.axhline(0, color=MUTED, linewidth=0.8)
        one.set(xlabel="x", ylabel="log density in nats")
        two.set(xlabel="x", ylabel="score in 1 / length")
        one.set_title("Two maxima and a minimum")
        moved = -found["weights .2 and .8"][1]
        two.set_title(f"Three zeros; the middle one at −{moved:.4f} for .2 and .8")
        one.legend(loc="upper center")
        two.legend(loc="upper right")
