"""Evaluations that mean nothing for the data at hand."""

from collections.abc import Iterator, Mapping

from hydra.utils import instantiate

from scorefield.cli.contradictions.draft import Draft
from scorefield.data import Data
from scorefield.dequantisation import VariationalDequantisation
from scorefield.metrics.fidelity import FEWEST
from scorefield.schedules import Schedule
from scorefield.training.callbacks.likelihood import BitsPerDimChain, DensityEvaluator
from scorefield.training.callbacks.quality import SampleQuality


def likelihood_has_a_density(draft: Draft) -> Iterator[str]:
    """A likelihood is taken of data only that have one."""
    data = draft.parts["data"]["dataset"]
    if not isinstance(data, Data) or data.has_density:
        return
    for name, callback in draft.parts["callbacks"].items():
        if isinstance(callback, DensityEvaluator):
            yield (
                f"callbacks.{name} takes the likelihood of {data.name}, which has no density as it is configured; "
                f"blur the data, as by data.dataset.std=0.1, or switch it off with callbacks.{name}=null"
            )


def dequantisation_fits_data(draft: Draft) -> Iterator[str]:
    """Only integer levels of images are dequantised by a flow."""
    data = draft.parts["data"]["dataset"]
    for name, callback in draft.parts["callbacks"].items():
        wanted = getattr(callback, "dequantisation", None)
        fits = isinstance(data, Data) and data.levels is not None and len(data.shape) == 3
        if isinstance(wanted, VariationalDequantisation) and not fits:
            yield (
                f"callbacks.{name}.dequantisation is variational, which is for images of integer grey levels, but "
                f"{data.name} has shape {data.shape} and {data.levels or 'no'} levels; choose dequantisation=uniform"
            )


def chain_has_levels(draft: Draft) -> Iterator[str]:
    """The bound of a discrete chain is one of grey levels, and takes steps that the schedule has."""
    data, schedule = draft.parts["data"]["dataset"], draft.parts["schedule"]
    for name, callback in draft.parts["callbacks"].items():
        if not isinstance(callback, BitsPerDimChain):
            continue
        if isinstance(data, Data) and data.levels is None:
            yield (
                f"callbacks.{name} is the bound of integer grey levels, and {data.name} holds continuous data; choose "
                "bound=variational"
            )
        if isinstance(schedule, Schedule):
            try:
                callback.chain.times(schedule)
            except ValueError as error:
                yield f"callbacks.{name}.chain: {error}"


def quality_knows_the_images(draft: Draft) -> Iterator[str]:
    """A feature extractor sees images of its own number of grey levels."""
    data = draft.parts["data"]["dataset"]
    for name, node in draft.config["callbacks"].items():
        if not isinstance(node, Mapping) or not isinstance(node.get("extractor"), Mapping):
            continue
        target = node["extractor"]["_target_"]
        levels = getattr(instantiate({"_target_": "hydra.utils.get_class", "path": target}), "levels", None)
        if isinstance(data, Data) and levels is not None and data.levels != levels:
            yield (
                f"callbacks.{name} measures images of {levels} grey levels with {target.rpartition('.')[2]}, but "
                f"{data.name} has {data.levels or 'none'}; choose callbacks=toy for points in the plane, images for "
                "pictures, digits for the 8x8 digits"
            )


def quality_has_enough_samples(draft: Draft) -> Iterator[str]:
    """A distance needs a covariance, and at the end a score of parts."""
    for name, callback in draft.parts["callbacks"].items():
        if not isinstance(callback, SampleQuality):
            continue
        for key, least in (("n", 2), ("n_final", FEWEST)):
            value = getattr(callback, key)
            if 1 <= value < least:
                yield (
                    f"callbacks.{name}.{key}={value} are too few samples to measure quality; give at least {least}, or "
                    f"callbacks.{name}=null"
                )


def evaluations_take_place(draft: Draft) -> Iterator[str]:
    """Whatever is counted in samples is counted from one."""
    for name, node in draft.config["callbacks"].items():
        for key, value in node.items() if isinstance(node, Mapping) else ():
            counted = key in ("n", "n_final", "batch_size", "columns", "levels")
            if counted and isinstance(value, int) and value < 1:
                yield f"callbacks.{name}.{key}={value} must be at least 1; to switch it off, callbacks.{name}=null"
