"""A weighted sum of objectives."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from scorefield.models.base import Cond, ScoreModel
from scorefield.noise import Noise
from scorefield.objectives.base import Loss, Objective


class Sum(Objective):
    """sum_k c_k objective_k: each draws its own times and noise from the same batch.

    Args:
        terms: objectives by name; what each lost is logged under its name.
        coefficients: c_k >= 0 by the same names.
    """

    def __init__(self, terms: Mapping[str, Objective], coefficients: Mapping[str, float]) -> None:
        super().__init__()
        if not terms or terms.keys() != coefficients.keys():
            raise ValueError(
                f"terms and coefficients must have the same names, at least one; got {sorted(terms)} and "
                f"{sorted(coefficients)}"
            )
        if any(c < 0 for c in coefficients.values()):
            raise ValueError(f"coefficients={dict(coefficients)} must not be negative")
        self.terms = nn.ModuleDict(dict(terms))
        self.coefficients = dict(coefficients)

    def forward(self, model: ScoreModel, x: Tensor, cond: Cond | None, noise: Noise) -> Loss:
        """The weighted sum; the times are those of the first term."""
        losses = {name: term(model, x, cond, noise) for name, term in self.terms.items()}
        total = torch.stack([self.coefficients[name] * loss.per_sample for name, loss in losses.items()]).sum(0)
        log = {name: loss.per_sample.detach() for name, loss in losses.items()}
        for loss in losses.values():
            log = {**loss.log, **log}
        return Loss(total, next(iter(losses.values())).t, log)

    def process_state(self) -> dict[str, Tensor]:
        states = {name: term.process_state() for name, term in self._objectives()}
        return {f"{name}.{key}": value for name, state in states.items() for key, value in state.items()}

    def load_process_state(self, state: dict[str, Tensor]) -> None:
        for name, term in self._objectives():
            mine = {key: value for key, value in state.items() if key.startswith(f"{name}.")}
            term.load_process_state({key.removeprefix(f"{name}."): value for key, value in mine.items()})

    def _objectives(self) -> list[tuple[str, Objective]]:
        return [(name, term) for name, term in self.terms.items() if isinstance(term, Objective)]
