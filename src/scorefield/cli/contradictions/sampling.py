"""Samplers, guidance and observations that do not fit the model or each other."""

from collections.abc import Iterator
from typing import Any

from scorefield.cli.contradictions.draft import Draft
from scorefield.data import Data, Mixture
from scorefield.kernels import Mala, Stay
from scorefield.models import (
    ClassifierGuided,
    DensityModel,
    Guided,
    ScoreModel,
)
from scorefield.probability_flow import ProbabilityFlow
from scorefield.samplers import FlowSampler, Sampler
from scorefield.schedules import Constant, Schedule
from scorefield.training.callbacks import ChainReport, FisherDivergence, TotalVariation

_MOST_STEPS = 100_000  # of a sampler whose grid is tried out here


def guidance_fits(draft: Draft) -> Iterator[str]:
    """A guidance has a model that is told classes, and one that was trained without them now and then."""
    guidance, model, data = draft.parts.get("guidance"), draft.parts["model"], draft.config["data"]
    kind = getattr(guidance, "func", None)
    if kind is None or not isinstance(model, ScoreModel):
        return
    if not data.get("conditional", False) and kind is Guided:
        yield "guidance steers towards a class, but the model is told none: data.conditional=false; use guidance=none"
    elif kind is Guided and not data.get("label_dropout", 0.0):
        yield (
            "guidance compares the model with itself without a class, which it has never been: data.label_dropout=0; "
            "train with data.label_dropout=0.1, or use guidance=classifier"
        )
    else:
        try:
            guidance(model)  # type: ignore[misc]
        except ValueError as error:
            yield f"guidance: {error}"


def guidance_can_be_stored(draft: Draft) -> Iterator[str]:
    """A run's configuration names no other run."""
    if getattr(draft.parts.get("guidance"), "func", None) is ClassifierGuided:
        yield "guidance=classifier reads another run, which training does not; give it to sample, edit or evaluate"


def densities_are_known(draft: Draft) -> Iterator[str]:
    """What is compared with the truth has one, and what is normalised or put to a Metropolis test has a density."""
    data, model = draft.parts["data"]["dataset"], draft.parts["model"]
    known = not isinstance(model, ScoreModel) or isinstance(model, DensityModel)
    for name, callback in draft.parts["callbacks"].items():
        compared = isinstance(callback, FisherDivergence | TotalVariation)
        if compared and isinstance(data, Data) and not isinstance(data, Mixture):
            yield (
                f"callbacks.{name} compares with the truth, and {data.name} has no density in closed form at every "
                f"noise level; use data=mixture, or callbacks.{name}=null"
            )
        if isinstance(callback, TotalVariation) and not known:
            yield (
                f"callbacks.{name} normalises a density, and model=network has a score only; use model=energy, or "
                f"callbacks.{name}=null"
            )
        yield from _without_density(getattr(callback, "sampler", None), known, f"callbacks.{name}.sampler")
        if isinstance(callback, ChainReport) and isinstance(callback.kernel, Mala) and not known:
            yield f"callbacks.{name}.kernel is a Metropolis test, and model=network has a score only; use Langevin"


def sampler_has_a_density(draft: Draft) -> Iterator[str]:
    """The same for the sampler alone."""
    model = draft.parts["model"]
    known = not isinstance(model, ScoreModel) or isinstance(model, DensityModel)
    yield from _without_density(draft.parts["sampler"], known, "sampler")


def _without_density(part: Any, known: bool, path: str) -> Iterator[str]:
    if isinstance(part, Sampler) and isinstance(part.corrector, Mala) and not known:
        yield f"{path} puts its steps to a Metropolis test, and model=network has a score only; use sampler=langevin"


def samplers_fit_schedule(draft: Draft) -> Iterator[str]:
    """Where a callback samples, its grid has times on the schedule; where it integrates, the flow has an interval."""
    schedule = draft.parts["schedule"]
    if not isinstance(schedule, Schedule):
        return
    for name, callback in draft.parts["callbacks"].items():
        for key in ("sampler", "flow"):
            yield from _off_schedule(getattr(callback, key, None), schedule, f"callbacks.{name}.{key}")


def sampler_fits_schedule(draft: Draft) -> Iterator[str]:
    """The same for the sampler alone."""
    if isinstance(draft.parts["schedule"], Schedule):
        yield from _off_schedule(draft.parts["sampler"], draft.parts["schedule"], "sampler")


def _off_schedule(part: Any, schedule: Schedule, path: str) -> Iterator[str]:
    """What keeps a sampler or a flow from going from noise to data."""
    if not isinstance(part, Sampler | FlowSampler | ProbabilityFlow):
        return
    if isinstance(schedule, Constant):
        if not isinstance(part, Sampler) or not isinstance(part.predictor, Stay):
            yield (
                f"{path} goes from noise to data, but {schedule} has one level only; choose sampler=langevin or mala, "
                "and callbacks=energy or none"
            )
    elif isinstance(part, Sampler):
        if part.steps <= _MOST_STEPS:
            yield from (f"{path}: {text}" for text in _wrong_grid(part, schedule))
    elif part.t_min is not None and not schedule.t_min <= part.t_min < schedule.t_max:
        yield f"{path}.t_min={part.t_min} is outside of {schedule}"


def _wrong_grid(sampler: Sampler, schedule: Schedule) -> Iterator[str]:
    try:
        times = sampler.grid(schedule, sampler.steps)
    except Exception as error:
        yield str(error)
        return
    steps = times.diff()
    moving = steps if not isinstance(sampler.predictor, Stay) else steps[:-1]  # a ladder ends at its last level
    rising = sampler.moves - sampler.grid.descents(sampler.steps)  # as RePaint's grid does
    if not times.isfinite().all() or not (moving != 0).all() or int((steps > 0).sum()) != rising:
        yield f"{sampler.grid} gives times that do not decrease under {schedule}"
    elif times[0] > schedule.t_max or times[-1] < schedule.t_min:
        yield f"{sampler.grid} runs from t={float(times[0]):.4g} to {float(times[-1]):.4g}, outside of {schedule}"


def observation_is_whole(draft: Draft) -> Iterator[str]:
    """Pictures, what is observed of them and how it is honoured belong together."""
    config = draft.config
    seen = config.get("observation")
    pictures = [key for key in ("images", "examples") if config[key] is not None]
    honoured = [key for key in ("constraint", "posterior") if config.get(key)]
    if seen and len(pictures) != 1:
        yield "observation needs pictures: give either images=FILE_OR_FOLDER or examples=NUMBER of the test split"
    if seen and not honoured:
        yield "observation is made, but nothing honours it; give constraint=replacement, or posterior=pigdm"
    for key in [*pictures, *honoured]:
        if not seen:
            yield f"{key} was given without an observation; give one, such as observation=upper_half"
    if config["std"] > 0 and not seen:
        yield f"std={config['std']} is the noise of an observation, and there is none; give one, or leave std away"
    if config["std"] < 0:
        yield f"std={config['std']} is a deviation and must not be negative"


def pictures_are_given(draft: Draft) -> Iterator[str]:
    """Something is there to edit."""
    if (draft.config["images"] is None) == (draft.config["examples"] is None):
        yield "give either images=FILE_OR_FOLDER or examples=NUMBER, the first so many of the test split"
