"""Settings that are each right and do not go together.

Every check below is one function of a `Draft`; it yields what is wrong, or nothing. They run where each node can be
built by itself. `CHECKS` lists those of each command; to add one, write it and put it there.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import instantiate
from lightning_fabric.accelerators import ACCELERATOR_REGISTRY
from pytorch_lightning.strategies import StrategyRegistry
from torch import Tensor, nn

from scorefield.cli.compose import nearest
from scorefield.data import Data, Mixture
from scorefield.dequantisation import VariationalDequantisation
from scorefield.kernels import Mala, Stay
from scorefield.models import (
    Classifier,
    ClassifierGuided,
    Compute,
    DensityModel,
    EnergyModel,
    Guided,
    NetworkModel,
    ScoreModel,
)
from scorefield.noise import StreamNoise
from scorefield.objectives import CrossEntropy, Denoising, Objective, PersistentContrastiveDivergence
from scorefield.probability_flow import ProbabilityFlow
from scorefield.samplers import FlowSampler, Sampler
from scorefield.schedules import Constant, Schedule
from scorefield.training.callbacks import ChainReport, FisherDivergence, TotalVariation
from scorefield.training.callbacks.likelihood import LikelihoodEvaluator

_MOST_STEPS = 100_000  # of a sampler whose grid is tried out here


@dataclass(frozen=True)
class Draft:
    """A run before it is built.

    Args:
        config: its plain values.
        parts: the same tree with objects in the place of nodes, see `scorefield.cli.check.rehearse`.
        launcher: what starts it as a job of a sweep, as Hydra's configuration has it; None for a run of its own.
    """

    config: Mapping[str, Any]
    parts: Mapping[str, Any]
    launcher: Mapping[str, Any] | None = None

    @property
    def trainer(self) -> Mapping[str, Any]:
        """The trainer's arguments."""
        trainer: Mapping[str, Any] = self.config["trainer"]
        return trainer

    @property
    def processes(self) -> int | None:
        """Number of processes on this machine; None where only Lightning can tell."""
        devices = self.trainer.get("devices", "auto")
        if isinstance(devices, list):
            return len(devices)
        if isinstance(devices, str) and devices.lstrip("-").isdigit():
            devices = int(devices)
        if devices in ("auto", -1):
            return max(1, torch.cuda.device_count()) if _wants_gpu(self) else None
        if isinstance(devices, str):
            return len(devices.strip(",").split(","))
        return int(devices)


def _wants_gpu(draft: Draft) -> bool:
    return draft.trainer.get("accelerator", "auto") in ("gpu", "cuda")


def counts_are_positive(draft: Draft) -> Iterator[str]:
    """What is counted from one."""
    data = draft.config.get("data", {})
    named = {key: draft.config.get(key) for key in ("steps", "n", "columns", "batch_size", "examples")}
    for key, value in {**named, **{f"data.{key}": data.get(key) for key in ("batch_size", "examples")}}.items():
        if value is not None and value < 1:
            yield f"{key}={value} must be at least 1"


def seed_is_one(draft: Draft) -> Iterator[str]:
    """Torch's generators take no other."""
    if draft.config["seed"] < 0:
        yield f"seed={draft.config['seed']} must not be negative"


def name_is_a_folder(draft: Draft) -> Iterator[str]:
    """The name becomes a folder below outputs."""
    name = draft.config["name"]
    if not name.strip(". ") or not name.isprintable() or "/" in name or len(name.encode(errors="replace")) > 200:
        yield f"name={name!r} names a folder: printable, without '/', at most 200 bytes, and not empty"


def trainer_leaves_room(draft: Draft) -> Iterator[str]:
    """Arguments of Lightning's trainer that the run itself sets."""
    for key in ("callbacks", "logger", "default_root_dir", "plugins"):
        if key in draft.trainer:
            where = {"callbacks": "+callbacks.NAME", "logger": "logger"}.get(key, "outputs or run_dir")
            yield f"trainer.{key} is set by the run itself and would be ignored; use {where}"
    steps, most = draft.config["steps"], draft.trainer.get("max_steps")
    if most != steps:
        yield f"trainer.max_steps={most} and steps={steps} differ, and the learning rate follows steps; set steps alone"


def _runs_elsewhere(draft: Draft) -> bool:
    """Whether a job is sent to a cluster, from a machine whose devices say nothing about it."""
    return draft.launcher is not None and str(draft.launcher.get("_target_")).endswith(".SlurmLauncher")


def devices_exist(draft: Draft) -> Iterator[str]:
    """The accelerator is known and there are enough of it."""
    if _runs_elsewhere(draft):
        return
    accelerator = draft.trainer.get("accelerator", "auto")
    devices = draft.trainer.get("devices", "auto")
    if isinstance(accelerator, str):
        known = {"auto", "gpu", *ACCELERATOR_REGISTRY.available_accelerators()}
        if accelerator not in known:
            yield f"trainer.accelerator={accelerator} is unknown; there is {', '.join(sorted(known))}"
            return
    number = draft.processes
    if isinstance(devices, str) and devices != "auto" and not devices.lstrip("-").replace(",", "").isdigit():
        yield f"trainer.devices={devices!r} must be a number, a list of numbers or auto"
    elif number is not None and number < 1:
        yield f"trainer.devices={devices} must be at least 1"
    elif _wants_gpu(draft) and not torch.cuda.is_available():
        yield f"trainer.accelerator={accelerator} was asked for, but torch finds no GPU here; use trainer=cpu"
    elif _wants_gpu(draft) and number is not None and number > torch.cuda.device_count():
        yield f"trainer.devices={devices}, but there are {torch.cuda.device_count()} GPUs here"
    elif accelerator == "cpu" and number is not None and number > 4 * (os.cpu_count() or 1):
        yield f"trainer.devices={devices} processes, but there are {os.cpu_count()} cores here"


def strategy_is_known(draft: Draft) -> Iterator[str]:
    """The strategy has a name that Lightning knows, and keeps whole parameters for the average."""
    strategy = draft.trainer.get("strategy", "auto")
    if isinstance(strategy, str):
        known = {"auto", *StrategyRegistry.available_strategies()}
        if strategy not in known:
            yield f"trainer.strategy={strategy!r} is unknown; {nearest(strategy, sorted(known))}"
        elif strategy.startswith(("fsdp", "deepspeed")) and draft.config.get("ema"):
            yield f"trainer.strategy={strategy} shards the parameters, which ema cannot average; use ddp, or ~ema"


def batch_divides(draft: Draft) -> Iterator[str]:
    """Every process takes an equal share of a batch."""
    size, number = draft.config["data"]["batch_size"], draft.processes
    nodes = draft.trainer.get("num_nodes", 1)
    if number and number > 0 and nodes > 0 and size % (number * nodes):
        yield (
            f"data.batch_size={size} counts all processes and cannot be shared by {number * nodes} of them "
            f"(trainer.devices={draft.trainer.get('devices')}); use a multiple"
        )


def job_can_start_processes(draft: Draft) -> Iterator[str]:
    """Processes that Lightning starts repeat the command line: in a sweep's own process the whole sweep, each of them.

    Slurm starts them itself, as many as the launcher asks for.
    """
    if draft.launcher is None:
        return
    name = str(draft.launcher.get("_target_")).rpartition(".")[2]
    number, nodes = draft.processes or 1, draft.trainer.get("num_nodes", 1)
    if name == "Processes" and nodes > 1:
        yield (
            f"trainer.num_nodes={nodes}: hydra/launcher=processes starts jobs on this machine alone; on several, "
            "use hydra/launcher=submitit_slurm"
        )
    elif _runs_elsewhere(draft):
        asked = (draft.launcher.get("tasks_per_node", 1), draft.launcher.get("nodes", 1))
        if asked != (number, nodes):
            yield (
                f"hydra.launcher.tasks_per_node={asked[0]} and hydra.launcher.nodes={asked[1]} must be trainer.devices="
                f"{number} and trainer.num_nodes={nodes}: Slurm starts the processes of a job"
            )
    elif name != "Processes" and (number > 1 or nodes > 1):
        yield (
            f"hydra.launcher {name} runs jobs inside its own process, but trainer.devices="
            f"{draft.trainer.get('devices')}: each further process would repeat the whole sweep; use "
            "hydra/launcher=processes"
        )


def validation_interval(draft: Draft) -> Iterator[str]:
    """Validations fall on whole steps."""
    interval, accumulated = draft.trainer.get("val_check_interval"), draft.trainer.get("accumulate_grad_batches", 1)
    if accumulated < 1:
        yield f"trainer.accumulate_grad_batches={accumulated} must be at least 1"
    elif isinstance(interval, int) and (interval < 1 or interval % accumulated):
        yield (
            f"trainer.val_check_interval={interval} counts batches and must be a positive multiple of "
            f"trainer.accumulate_grad_batches={accumulated}"
        )


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


def likelihood_has_a_density(draft: Draft) -> Iterator[str]:
    """A likelihood is taken of data only that have one."""
    data = draft.parts["data"]["dataset"]
    if not isinstance(data, Data) or data.has_density:
        return
    for name, callback in draft.parts["callbacks"].items():
        if isinstance(callback, LikelihoodEvaluator):
            yield (
                f"callbacks.{name} takes the likelihood of {data.name}, which has no density as it is configured; "
                f"blur the data, as by data.dataset.std=0.1, or switch it off with callbacks.{name}=null"
            )


def compute_is_heard(draft: Draft) -> Iterator[str]:
    """Only networks whose output is the prediction have settings for their calls."""
    asked = draft.parts.get("compute")
    if isinstance(asked, Compute) and asked != Compute() and not isinstance(draft.parts["model"], NetworkModel):
        kind = type(draft.parts["model"]).__name__
        yield f"compute={asked} is for model=network; {kind} does not read it, choose compute=plain"


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


def evaluations_take_place(draft: Draft) -> Iterator[str]:
    """Whatever is counted in samples is counted from one."""
    for name, node in draft.config["callbacks"].items():
        for key, value in node.items() if isinstance(node, Mapping) else ():
            counted = key in ("n", "n_final", "batch_size", "columns", "levels")
            if counted and isinstance(value, int) and value < 1:
                yield f"callbacks.{name}.{key}={value} must be at least 1; to switch it off, callbacks.{name}=null"


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
    if config["std"] < 0:
        yield f"std={config['std']} is a deviation and must not be negative"


def pictures_are_given(draft: Draft) -> Iterator[str]:
    """Something is there to edit."""
    if (draft.config["images"] is None) == (draft.config["examples"] is None):
        yield "give either images=FILE_OR_FOLDER or examples=NUMBER, the first so many of the test split"


def device_exists(draft: Draft) -> Iterator[str]:
    """The device on which samples are drawn."""
    name = draft.config["device"]
    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        yield f"device={name!r} cannot be used: {str(error).splitlines()[0]}"


def something_is_validated(draft: Draft) -> Iterator[str]:
    """A run that ends before its first validation can be meant, but rarely is."""
    interval, steps = draft.trainer.get("val_check_interval"), draft.config["steps"]
    if isinstance(interval, int) and interval > steps and not draft.trainer.get("fast_dev_run"):
        yield f"trainer.val_check_interval={interval} is more than steps={steps}: nothing is validated before the end"


CHECKS: Mapping[str, tuple[Callable[[Draft], Iterator[str]], ...]] = {
    "train": (
        counts_are_positive,
        seed_is_one,
        name_is_a_folder,
        trainer_leaves_room,
        devices_exist,
        strategy_is_known,
        batch_divides,
        job_can_start_processes,
        validation_interval,
        data_are_described,
        net_fits_data,
        net_answers_the_model,
        classifier_is_trained_as_one,
        guidance_fits,
        guidance_can_be_stored,
        optimizer_takes_its_numbers,
        objective_fits_schedule,
        samplers_fit_schedule,
        densities_are_known,
        likelihood_has_a_density,
        dequantisation_fits_data,
        compute_is_heard,
        quality_knows_the_images,
        evaluations_take_place,
    ),
    "evaluate": (counts_are_positive, seed_is_one, devices_exist, strategy_is_known, job_can_start_processes),
    "sample": (counts_are_positive, seed_is_one, device_exists, observation_is_whole),
    "edit": (counts_are_positive, seed_is_one, device_exists, pictures_are_given),
    "convert": (seed_is_one, name_is_a_folder, data_are_described),
    "recipe": (counts_are_positive, seed_is_one, data_are_described),
    "stats": (counts_are_positive, device_exists, data_are_described),
    "evaluation": (
        devices_exist,
        data_are_described,
        guidance_fits,
        samplers_fit_schedule,
        densities_are_known,
        likelihood_has_a_density,
        dequantisation_fits_data,
        quality_knows_the_images,
        evaluations_take_place,
    ),
    "drawing": (sampler_fits_schedule, sampler_has_a_density, guidance_fits),
}
REMARKS: Mapping[str, tuple[Callable[[Draft], Iterator[str]], ...]] = dict.fromkeys(CHECKS, ()) | {
    "train": (something_is_validated,)
}
