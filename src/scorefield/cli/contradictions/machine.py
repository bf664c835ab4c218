"""What a machine, its processes and the counts of a run allow."""

import os
from collections.abc import Iterator

import torch
from lightning_fabric.accelerators import ACCELERATOR_REGISTRY
from pytorch_lightning.strategies import StrategyRegistry

from scorefield.cli.composed import nearest
from scorefield.cli.contradictions.draft import Draft


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
    elif draft.wants_gpu and not torch.cuda.is_available():
        yield f"trainer.accelerator={accelerator} was asked for, but torch finds no GPU here; use trainer=cpu"
    elif draft.wants_gpu and number is not None and number > torch.cuda.device_count():
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


def fused_optimizer_is_not_clipped(draft: Draft) -> Iterator[str]:
    """Under mixed precision a fused optimiser undoes the loss scale by itself, too late for clipping."""
    precision, clip = str(draft.trainer.get("precision", "")), draft.trainer.get("gradient_clip_val")
    if draft.config["optim"]["optimizer"].get("fused") and clip and precision.endswith("mixed"):
        yield (
            f"trainer.precision={precision} with optim.optimizer.fused=true cannot clip gradients "
            f"(trainer.gradient_clip_val={clip}); give optim.optimizer.fused=false, or compute=tensor_cores, which "
            "needs no mixed precision of the trainer"
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
