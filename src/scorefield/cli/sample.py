"""scorefield sample: draw samples from a run's model into a folder, of its own or such that explain an observation."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from rich.progress import track
from torch import Tensor

from scorefield.cli.app import refuse, run_app
from scorefield.cli.pictures import Observation, complete, spread
from scorefield.cli.places import save_arrays, unused, writing_to
from scorefield.cli.runs import (
    Config,
    UserError,
    fingerprint,
    load_run,
    make,
    make_data,
    newest_checkpoint,
    stored_config,
)
from scorefield.data import Data
from scorefield.metrics.features import file_hash
from scorefield.models import Classifier, ClassifierGuided, ScoreModel
from scorefield.records.figures import scatter2d
from scorefield.records.files import write_atomically
from scorefield.records.pictures import image_rows, save_gif, save_png
from scorefield.records.rundir import RunDir
from scorefield.training.callbacks.samples import AnySampler, Frames, draw, picture

# What is asked for besides the run, the seed and the place; it names the folder and stands in protocol.json.
_ASKED = ("weights", "label", "guidance", "observation", "constraint", "posterior", "images", "examples", "std")


def main(config: DictConfig) -> None:
    """Draw ``n`` samples, or ``n`` of each picture; write them as numbers, a picture and the path of the first."""
    asked: Any = OmegaConf.to_container(config, resolve=True)
    run = RunDir(Path(asked["run_dir"]))
    stored = stored_config(run)
    node = asked.get("sampler") or stored["sampler"]
    refuse({**stored, "sampler": node, "guidance": asked["guidance"]}, "drawing", f"sampling from {run.path}")
    told = {
        "sampler": node,
        **{key: asked[key] for key in _ASKED if asked[key] or (key, asked[key]) == ("label", 0)},
        **weights_of(run),
    }
    place = asked["out"] or run.path / "drawn" / f"{fingerprint(told)}-seed{asked['seed']}"
    out = unused(place, "samples.npz", "samples")
    data = make_data(stored)
    observation = Observation.made(asked, data) if asked["observation"] else None
    device = torch.device(asked["device"])
    label = known_label(asked["label"], stored, data.classes, steers_by_a_classifier(asked["guidance"]))
    model = load_run(run.path, asked["weights"])
    if isinstance(model, Classifier):
        raise UserError(
            f"{run.path} is a classifier, which knows classes of samples and no samples; name it in "
            f"guidance=classifier guidance.classifier.run_dir={run.path}, and give the run of a model as run_dir"
        )
    model = steered(model, asked, observation).to(device)
    drawing = Drawing(model, constrained(make(node), asked, observation), data, device, asked["seed"])
    with writing_to(out):
        samples, nfe = drawing.batches(asked["n"], asked["batch_size"], label, observation)
        protocol = {"run_dir": asked["run_dir"], "seed": asked["seed"], "n": asked["n"], **told, "nfe": nfe}
        write_atomically(out / "protocol.json", json.dumps(protocol, indent=2).encode())
        if observation is None:
            drawing.write_plain(out, samples, asked["columns"])
        else:
            write_observed(out, data, observation, samples, asked["columns"])
    print(f"{samples.flatten(0, 1).shape[0]} samples, {nfe:g} evaluations each: {out}")


def weights_of(run: RunDir) -> dict[str, Any]:
    """The checkpoint that samples come from: its name, and what it holds."""
    newest = newest_checkpoint(run)
    return {} if newest is None else {"checkpoint": newest.name, "checkpoint_hash": file_hash(newest)}


def steers_by_a_classifier(guidance: Config | None) -> bool:
    """Whether classes are told to a classifier, so that a model without classes can be asked for one."""
    return bool(guidance) and get_class(guidance["_target_"]) is ClassifierGuided  # type: ignore[index]


def steered(model: ScoreModel, asked: dict[str, Any], observation: Observation | None) -> ScoreModel:
    """The model with the guidance and the observation's score that were asked for."""
    if asked["guidance"]:
        if asked["label"] is None:
            raise UserError("guidance steers towards a class; give label=CLASS")
        model = complete(asked["guidance"], model=model)
    if asked["posterior"] and observation is not None:
        model = complete(asked["posterior"], model=model, operator=observation.operator)
    return model


def constrained(sampler: AnySampler, asked: dict[str, Any], observation: Observation | None) -> AnySampler:
    """The sampler with the constraint that was asked for."""
    if not asked["constraint"] or observation is None:
        return sampler
    constraint = complete(asked["constraint"], operator=observation.operator)
    try:
        return replace(sampler, constraint=constraint)
    except ValueError as error:
        raise UserError(f"sampler: {error}") from error


@dataclass
class Drawing:
    """Samples of one model by one sampler.

    Args:
        model: guided and told of the observation, where there is one.
        sampler: constrained, where it is.
        data: shape and values of the samples.
        device: where they are drawn.
        seed: sample i depends on (seed, i) alone.
    """

    model: ScoreModel
    sampler: AnySampler
    data: Data
    device: torch.device
    seed: int

    def batches(
        self, n: int, batch_size: int, label: int | None, observation: Observation | None
    ) -> tuple[Tensor, float]:
        """Samples (J, n, *shape) in the data's own values, J = 1 without an observation, and evaluations of each."""
        rows = 1 if observation is None else len(observation.y)
        self.frames = Frames(getattr(self.sampler, "moves", 1))
        parts, nfe = [], 0.0
        for number, batch in enumerate(track(torch.arange(rows * n).split(batch_size), description="sampling")):
            cond = {} if label is None else {"label": torch.full((len(batch),), label, device=self.device)}
            if observation is not None:
                cond["observed"] = observation.y[batch // n].to(self.device)
            trace = self.frames if number == 0 else None
            x, nfe = draw(
                self.model, self.sampler, self.data.shape, batch.tolist(), self.seed, self.device, cond or None, trace
            )
            parts.append(self.data.from_model(x).cpu())
        return torch.cat(parts).unflatten(0, (rows, n)), nfe

    def write_plain(self, out: Path, samples: Tensor, columns: int) -> None:
        """Samples without an observation: numbers, picture and path."""
        (plain,) = samples
        save_arrays(out / "samples.npz", samples=plain.numpy())  # first: pictures can be made again
        if len(self.data.shape) == 3:
            save_png(out / "samples.png", picture(self.data, plain, columns))
            states = [picture(self.data, self.data.from_model(state), columns) for state in self.frames.states]
            save_gif(out / "trajectory.gif", states)
        elif self.data.shape == (2,):
            scatter2d(out / "samples.png", {"data": self.data.test().x[: len(plain)], "samples": plain})


def write_observed(out: Path, data: Data, observation: Observation, samples: Tensor, columns: int) -> None:
    """A row for each picture: what was observed, samples, their spread, and the picture itself."""
    save_arrays(
        out / "samples.npz",
        samples=samples.numpy(),
        observed=observation.y.numpy(),
        given=observation.given.x.numpy(),
        names=np.array(observation.given.names),
    )
    shown = [data.display(observation.shown(data)), *(data.display(x) for x in samples[:, :columns].unbind(1))]
    shown += [spread(data, samples)] if samples.shape[1] > 1 else []
    save_png(out / "samples.png", image_rows([*shown, data.display(observation.given.x)]))


def known_label(label: int | None, stored: dict[str, Any], classes: int | None, steered: bool) -> int | None:
    """The class to draw, refused where neither the model nor a classifier that steers it knows one."""
    if label is None:
        return None
    if not stored["data"].get("conditional", False) and not steered:
        raise UserError(
            f"label={label} was asked for, but {stored['name']} was trained without classes; train with "
            "data.conditional=true, or steer by a classifier with guidance=classifier"
        )
    if classes is None or not 0 <= label < classes:
        raise UserError(f"label={label} must be between 0 and {(classes or 0) - 1}")
    return label


if __name__ == "__main__":
    run_app("sample", main)
