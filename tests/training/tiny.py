"""Runs so small that a law about training takes a second: the real configuration with everything turned down."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from scorefield.cli.app import conf_dir
from scorefield.cli.runs import Parts, build, resolved
from scorefield.records.rundir import RunDir

PLANE = [
    "experiment=toy_mixture",
    "net.width=16",
    "net.depth=1",
    "net.embedding.dim=8",
    "data.batch_size=16",
    "sampler.steps=3",
    "callbacks.samples.n=8",
    "callbacks.samples.every=0",
    "callbacks.loss_by_noise.every=0",
    "callbacks.log.every=3",
    "callbacks.checkpoint.every=5",
    "callbacks.loss_by_noise.levels=4",
    "callbacks.loss_by_noise.n=16",
    "callbacks.likelihood.n=6",
    "callbacks.likelihood.n_check=2",
    "callbacks.likelihood.n_final=7",
    "likelihood.solver.rtol=1e-2",
    "likelihood.solver.atol=1e-2",
    "trainer.val_check_interval=4",
    "optim.optimizer.lr=0.02",
    "steps=12",
]
DIGITS = [
    "experiment=digits",
    "net.channels=8",
    "net.blocks=1",
    "net.embedding.dim=8",
    "data.batch_size=16",
    "sampler=edm_heun",
    "sampler.steps=2",
    "callbacks.samples.n=4",
    "callbacks.samples.every=0",
    "callbacks.loss_by_noise.every=0",
    "callbacks.log.every=3",
    "callbacks.checkpoint.every=5",
    "callbacks.loss_by_noise.levels=4",
    "callbacks.loss_by_noise.n=16",
    "callbacks.quality.n=21",
    "callbacks.quality.n_final=40",
    "callbacks.likelihood.n=5",
    "callbacks.likelihood.n_check=0",
    "callbacks.likelihood.n_final=5",
    "likelihood.solver.rtol=1e-2",
    "likelihood.solver.atol=1e-2",
    "trainer.val_check_interval=4",
    "steps=8",
]


ENERGY = [
    "experiment=toy_exact_sm",
    "net.width=8",
    "net.depth=1",
    "net.embedding.dim=4",
    "data.dataset.n_train=500",
    "data.batch_size=16",
    "sampler.steps=3",
    "callbacks.samples.n=8",
    "callbacks.samples.every=0",
    "callbacks.log.every=3",
    "callbacks.checkpoint.every=5",
    "callbacks.fisher.n=21",
    "callbacks.total_variation.side=20",
    "callbacks.chains.draws=4",
    "callbacks.chains.burn_in=2",
    "callbacks.chains.kernel.adapt=2",
    "trainer.val_check_interval=4",
    "steps=8",
]


CLASSIFIER = [
    "experiment=digits_classifier",
    "net.channels=8",
    "net.blocks=1",
    "net.embedding.dim=8",
    "data.batch_size=16",
    "callbacks.log.every=3",
    "callbacks.checkpoint.every=5",
    "callbacks.accuracy.levels=3",
    "callbacks.accuracy.n=41",
    "trainer.val_check_interval=4",
    "steps=8",
]


def compose_config(*overrides: str, name: str = "train") -> dict[str, Any]:
    """The resolved configuration that a command line would give; values below a group may be new ones."""
    overrides = tuple(
        f"++{o}" if "." in o.split("=")[0] and "@" not in o and o[0] not in "+~" else o for o in overrides
    )
    GlobalHydra.instance().clear()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose(name, overrides=[*overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        return resolved(config)


def plane(run_dir: Path, *overrides: str) -> dict[str, Any]:
    return compose_config(*PLANE, f"run_dir={run_dir}", *overrides)


def digits(run_dir: Path, *overrides: str) -> dict[str, Any]:
    return compose_config(*DIGITS, f"run_dir={run_dir}", *overrides)


def energy(run_dir: Path, *overrides: str) -> dict[str, Any]:
    return compose_config(*ENERGY, f"run_dir={run_dir}", *overrides)


def classifier(run_dir: Path, *overrides: str) -> dict[str, Any]:
    return compose_config(*CLASSIFIER, f"run_dir={run_dir}", *overrides)


def fit(config: dict[str, Any], checkpoint: Path | None = None, *callbacks: Any) -> Parts:
    """Build a run and train it, without the command's own bookkeeping."""
    parts = build(config)
    parts.trainer.callbacks.extend(callbacks)
    parts.trainer.fit(parts.module, parts.data, ckpt_path=checkpoint, weights_only=True)
    return parts


def journal(run_dir: Path) -> list[dict[str, Any]]:
    """Every line of metrics.jsonl, without what the clock says."""
    lines = [json.loads(line) for line in RunDir(run_dir).metrics.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "steps_per_second")} for line in lines]


def checkpoint(run_dir: Path) -> dict[str, Any]:
    """The newest checkpoint, without what the clock says."""
    content = torch.load(RunDir(run_dir).checkpoints()[-1], weights_only=True)
    content["callbacks"] = {k: v for k, v in content["callbacks"].items() if "Stopwatch" not in k}
    return content


def metrics(run_dir: Path) -> dict[str, Any]:
    """The numbers of result.json with their protocols, without what the clock says."""
    record = json.loads(RunDir(run_dir).result.read_text())
    return {name: {k: v for k, v in m.items() if k != "seconds"} for name, m in record["metrics"].items()}


def stored(run_dir: Path) -> dict[str, Any]:
    return yaml.safe_load(RunDir(run_dir).config.read_text())


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two nested values are not equal bit for bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{path}: keys {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [d for key in a for d in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return [f"{path}: {len(a)} and {len(b)} entries"]
        return [d for i, (u, v) in enumerate(zip(a, b, strict=True)) for d in differences(u, v, f"{path}/{i}")]
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [f"{path}: off by {float((a.double() - b.double()).abs().max()):.2g}"]
    return [] if a == b else [f"{path}: {a!r} and {b!r}"]
