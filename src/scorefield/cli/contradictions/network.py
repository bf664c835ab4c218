"""Networks, models, data and objectives that do not fit each other."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from scorefield.augmentation import Augmentation
from scorefield.cli.contradictions.draft import Draft
from scorefield.data import Data
from scorefield.models import (
    Classifier,
    Compute,
    EnergyModel,
    NetworkModel,
    ScoreModel,
)
from scorefield.noise import StreamNoise
from scorefield.objectives import CrossEntropy, Denoising, Objective, PersistentContrastiveDivergence
from scorefield.schedules import Schedule


def data_are_described(draft: Draft) -> Iterator[str]:
    """data.shape and data.classes are those of the data set."""
    data, declared = draft.parts["data"]["dataset"], draft.config["data"]
    if not isinstance(data, Data):
        return
    if tuple(declared["shape"]) != tuple(data.shape):
        yield f"data.shape={declared['shape']}, but {data.name} has shape {list(data.shape)}"
    if declared["classes"] != data.classes:
        yield f"data.classes={declared['classes']}, but {data.name} has {data.classes} classes"


def net_answers_the_model(draft: Draft) -> Iterator[str]:
    """An energy's network returns one number per sample, a classifier's logits, any other a tensor like its input."""
    model, shape, classes = draft.parts["model"], draft.config["data"]["shape"], draft.config["data"]["classes"]
    if not isinstance(model, NetworkModel | EnergyModel | Classifier) or not isinstance(model.net, nn.Module):
        return
    # Rehearsed networks lie on the meta device, which knows shapes alone.
    if any(not tensor.is_meta for tensor in (*model.net.parameters(), *model.net.buffers())):
        return
    x = torch.empty(2, *shape, device="meta")
    try:
        answer = model.net(x, torch.empty(2, device="meta")).shape
    except Exception:
        return  # whatever it cannot take, other checks and its own errors say better
    if isinstance(model, EnergyModel) and answer != x.shape[:1]:
        yield (
            f"model=energy needs a net that returns one number per sample, but {type(model.net).__name__} returns "
            f"events of shape {list(answer[1:])}; choose net=energy_mlp or energy_conv, or model=network"
        )
    if isinstance(model, Classifier) and answer != (2, classes):
        yield (
            f"model=classifier needs a net that returns {classes} logits, but {type(model.net).__name__} returns "
            f"{list(answer[1:]) or 'one number per sample'}; choose net=classifier_conv or classifier_mlp"
        )
    if isinstance(model, NetworkModel) and answer != x.shape:
        yield (
            f"model=network needs a net that returns events of shape {shape}, but {type(model.net).__name__} returns "
            f"{list(answer[1:]) or 'one number per sample'}; choose model=energy, or another net"
        )


def classifier_is_trained_as_one(draft: Draft) -> Iterator[str]:
    """A classifier has labels and its own objective, and nothing is sampled from it."""
    model, objective = draft.parts["model"], draft.parts["objective"]
    if not isinstance(model, Classifier):
        return
    if not draft.config["data"].get("conditional", False):
        yield "model=classifier learns the classes of the data; give data.conditional=true"
    elif draft.config["data"].get("label_dropout", 0.0):
        yield "model=classifier needs every label; give data.label_dropout=0"
    if isinstance(objective, Objective) and not isinstance(objective, CrossEntropy):
        yield (
            f"model=classifier is no model of the data that {type(objective).__name__} could train; choose "
            "objective=cross_entropy"
        )
    for name, callback in draft.parts["callbacks"].items():
        if hasattr(callback, "sampler") or hasattr(callback, "flow"):
            yield (
                f"callbacks.{name} samples from the model, and model=classifier is none of the data; use "
                "callbacks=classifier"
            )


def compute_is_heard(draft: Draft) -> Iterator[str]:
    """Only networks whose output is the prediction have settings for their calls.

    What `compute=plain` keeps of freed memory is no choice of anybody, and other models do without.
    """
    asked, model = draft.parts.get("compute"), draft.parts["model"]
    if (
        isinstance(asked, Compute)
        and replace(asked, keep_memory=False) != Compute()
        and not isinstance(model, NetworkModel)
    ):
        kind = type(model).__name__
        yield f"compute={asked} is for model=network; {kind} does not read it, choose compute=plain"


def net_fits_data(draft: Draft) -> Iterator[str]:
    """The network works on the data's shape and knows their classes where it is told them."""
    net, data = draft.config["net"], draft.config["data"]
    if "shape" in net and net["shape"] != data["shape"]:
        yield f"net.shape={net['shape']} differs from data.shape={data['shape']}; leave it at ${{data.shape}}"
    classes, conditional = net.get("classes"), data.get("conditional", False)
    if conditional and data["classes"] is None:
        yield "data.conditional=true, but the data have no classes"
    elif conditional and classes != data["classes"]:
        yield f"data.conditional=true, but net.classes={classes}; give net.classes={data['classes']}"
    elif classes is not None and not conditional:
        yield f"net.classes={classes} is never told a class; give data.conditional=true or net.classes=null"
    dropout = data.get("label_dropout", 0.0)
    if not 0 <= dropout < 1:
        yield f"data.label_dropout={dropout} is a probability below 1"
    elif dropout and not conditional:
        yield f"data.label_dropout={dropout} leaves out labels that nobody is told; give data.conditional=true"


def augmentation_is_told(draft: Draft) -> Iterator[str]:
    """What is augmented are images, and the network is told how: otherwise it learns that images look so."""
    augmentation, data = draft.parts.get("augmentation"), draft.config["data"]
    if not isinstance(augmentation, Augmentation):
        return
    model, known = draft.parts["model"], draft.config["net"].get("augmentations", 0)
    if len(data["shape"]) != 3:
        yield f"augmentation moves images, but data.shape={data['shape']}; leave augmentation out"
    if isinstance(model, ScoreModel) and not isinstance(model, NetworkModel):
        yield f"augmentation has to be told to the network, which {type(model).__name__} does not; use model=network"
    elif known != augmentation.labels:
        yield (
            f"augmentation tells the network {augmentation.labels} numbers, but net.augmentations={known}; give "
            f"net.augmentations={augmentation.labels} to a network that has it, as net=songunet_ddpmpp, or "
            "leave augmentation out"
        )
    if data.get("flip", False):
        yield "data.flip=true mirrors images untold, which augmentation does and tells; give data.flip=false"


def optimizer_takes_its_numbers(draft: Draft) -> Iterator[str]:
    """The optimiser and its schedule accept their numbers, tried on a single weight."""
    key = "optim.optimizer"
    try:
        optimizer = instantiate(draft.config["optim"]["optimizer"], _convert_="all")([nn.Parameter(torch.zeros(1))])
        key = "optim.lr_schedule"
        if draft.config["optim"].get("lr_schedule") is not None:
            instantiate(draft.config["optim"]["lr_schedule"], _convert_="all")(optimizer)
    except Exception as error:
        yield f"{key}: {_last_cause(error)}"


def _last_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)


class _Echo(nn.Module):
    """A network that answers with its input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return x + self.weight + 0 * label[:, None]  # a label that is not finite shows


class _EchoEnergy(_Echo):
    """A scalar network whose gradient is its input."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return super().forward(x, label).square().sum(1) / 2


def objective_fits_schedule(draft: Draft) -> Iterator[str]:
    """The schedule has the levels that the objective asks for, and the model what it differentiates: one step of it.

    The step is that of a network that answers with its input.
    """
    model, objective = draft.parts["model"], draft.parts["objective"]
    if not isinstance(objective, Objective):
        return
    schedule, parametrization = draft.parts["schedule"], draft.parts["parametrization"]
    if not isinstance(model, NetworkModel | EnergyModel) or not isinstance(schedule, Schedule):
        return
    net = _EchoEnergy() if isinstance(model, EnergyModel) else _Echo()
    noise, n = StreamNoise(0, "check"), 64
    if isinstance(objective, PersistentContrastiveDivergence):
        n, processes = min(n, objective.size), draft.processes
        share = draft.config["data"]["batch_size"] // (processes or 1)
        if share > objective.size:
            yield (
                f"objective.chains={objective.size} are fewer than the {share} samples of a batch; use at least as many"
            )
    try:
        loss = objective(type(model)(net, schedule, parametrization), torch.ones(n, 2), None, noise)
    except Exception as error:
        yield f"objective, model and schedule do not go together: {error}"
        return
    if not loss.per_sample.isfinite().all():
        t = float(loss.t[~loss.per_sample.isfinite()][0])
        yield (
            f"objective, parametrization and schedule do not go together: the loss is not finite at t={t:.4g} under "
            f"{schedule}; a noise level of 0 or of no bound has no such loss"
        )
    elif isinstance(objective, Denoising) and not (schedule.sigma(loss.t) > 0).all():
        yield f"objective: there is nothing to denoise under {schedule}, whose sigma is 0 at some training time"
    elif not ((loss.t >= schedule.t_min) & (loss.t <= schedule.t_max)).all():
        yield f"times draws t from {float(loss.t.min()):.4g} to {float(loss.t.max()):.4g}, outside of {schedule}"
