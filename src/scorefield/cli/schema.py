"""What each command reads from its configuration: the keys, and the type of what each of them makes.

A key that is not here is read by nothing, unless an interpolation reads it.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NotRequired, TypedDict

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from scorefield.augmentation import Augmentation
from scorefield.constraints import Constraint
from scorefield.data import Data
from scorefield.dequantisation import Dequantisation
from scorefield.editing import Edit
from scorefield.metrics.features import FeatureExtractor
from scorefield.models import Compute, Parametrization, ScoreModel
from scorefield.objectives import Objective
from scorefield.operators import LinearOperator
from scorefield.probability_flow import ProbabilityFlow
from scorefield.schedules import Schedule
from scorefield.times import TimeLaw
from scorefield.training.callbacks.samples import AnySampler, Guidance
from scorefield.training.ema import EMA


class DataNode(TypedDict):
    """The data set, and what it declares to the networks."""

    dataset: Data
    shape: list[int]
    classes: int | None
    batch_size: int
    conditional: NotRequired[bool]
    label_dropout: NotRequired[float]
    examples: NotRequired[int | None]
    resident: NotRequired[bool]  # images: whether the training split lives on the training device
    flip: NotRequired[bool]  # images: whether training mirrors them at random
    dequantise: NotRequired[bool]  # images: whether training spreads grey levels


class OptimNode(TypedDict):
    """The optimiser and its learning rate."""

    optimizer: Callable[..., Optimizer]
    lr_schedule: NotRequired[Callable[..., LRScheduler] | None]


class Train(TypedDict):
    """conf/train.yaml, and what every run stores."""

    data: DataNode
    augmentation: NotRequired[Augmentation | None]
    data_std: NotRequired[float]  # of the experiment; the parametrisations that need it interpolate it
    schedule: Schedule
    net: nn.Module
    parametrization: Parametrization
    model: ScoreModel
    compute: NotRequired[Compute]  # runs of earlier versions have none
    times: TimeLaw
    objective: Objective
    optim: OptimNode
    ema: NotRequired[EMA | None]
    sampler: AnySampler
    guidance: NotRequired[Guidance | None]
    likelihood: ProbabilityFlow
    dequantisation: NotRequired[Dequantisation]  # runs of earlier versions have none: uniform
    callbacks: Mapping[str, pl.Callback | None]
    on_nonfinite: NotRequired[pl.Callback | None]
    logger: Mapping[str, Logger | None]
    trainer: pl.Trainer
    name: str
    seed: int
    outputs: str
    run_dir: str | None
    fresh: bool
    tags: list[str]
    steps: int
    objective_metric: NotRequired[str | None]


class Evaluate(TypedDict):
    """conf/evaluate.yaml."""

    run_dir: str | None
    images: str | None
    reference: str | None
    reference_n: int | None
    standardise: bool
    out: str | None
    device: str
    extractor: NotRequired[Callable[[], FeatureExtractor] | None]
    weights: Literal["ema", "raw"]
    seed: int
    only: list[str] | None
    n: int | None
    steps: int
    sampler: NotRequired[AnySampler | None]
    guidance: NotRequired[Guidance | None]
    likelihood: NotRequired[ProbabilityFlow | None]
    dequantisation: NotRequired[Dequantisation | None]
    callbacks: NotRequired[Mapping[str, pl.Callback]]  # in addition to the run's own
    trainer: pl.Trainer


class Sample(TypedDict):
    """conf/sample.yaml."""

    run_dir: str
    weights: Literal["ema", "raw"]
    seed: int
    n: int
    label: int | None
    columns: int
    batch_size: int
    out: str | None
    device: str
    images: str | None
    examples: int | None
    std: float
    sampler: NotRequired[AnySampler | None]
    guidance: NotRequired[Guidance | None]
    observation: NotRequired[Callable[..., LinearOperator] | None]
    constraint: NotRequired[Callable[..., Constraint] | None]
    posterior: NotRequired[Callable[..., ScoreModel] | None]


class EditOf(TypedDict):
    """conf/edit.yaml."""

    run_dir: str
    weights: Literal["ema", "raw"]
    seed: int
    images: str | None
    examples: int | None
    label: int | None
    out: str | None
    device: str
    edit: Edit
    sampler: AnySampler
    guidance: NotRequired[Guidance | None]


class Convert(TypedDict):
    """conf/convert.yaml: a run without its model, and where that comes from."""

    source: Literal["ncsn", "ncsnv2", "score_sde", "edm", "diffusers", "scorefield"]
    checkpoint: str
    authors: str | None
    data: DataNode
    times: TimeLaw
    objective: Objective
    optim: OptimNode
    ema: NotRequired[EMA | None]
    sampler: AnySampler
    guidance: NotRequired[Guidance | None]
    likelihood: ProbabilityFlow
    dequantisation: NotRequired[Dequantisation]  # runs of earlier versions have none: uniform
    callbacks: Mapping[str, pl.Callback | None]
    on_nonfinite: NotRequired[pl.Callback | None]
    logger: Mapping[str, Logger | None]
    trainer: pl.Trainer
    name: str
    seed: int
    outputs: str
    run_dir: str
    fresh: bool
    tags: list[str]
    steps: int


class RecipeOf(TypedDict):
    """conf/recipe.yaml."""

    data: DataNode
    sigma_min: float
    corrections: int
    overlap: float
    n: int
    seed: int


class Stats(TypedDict):
    """conf/stats.yaml."""

    data: DataNode
    extractor: Callable[[], FeatureExtractor]
    split: Literal["train", "validation", "test"]
    out: str
    features: bool
    batch_size: int
    device: str


# A stored configuration that is evaluated or sampled from has a trainer or a sampler of another command.
SCHEMAS = {
    "train": Train,
    "evaluate": Evaluate,
    "sample": Sample,
    "edit": EditOf,
    "convert": Convert,
    "recipe": RecipeOf,
    "stats": Stats,
    "evaluation": Train,
    "drawing": Train,
}
