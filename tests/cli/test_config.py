"""Every file of conf/ composes, builds what it names, and every experiment runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import errors
from hydra.utils import get_class
from PIL import Image

from scorefield.cli.app import conf_dir
from scorefield.cli.compose import jobs
from scorefield.cli.runs import UserError, build, fingerprint, make, make_data
from scorefield.cli.train import execute
from scorefield.metrics.features import FeatureExtractor
from scorefield.models import MixtureModel
from scorefield.operators import Averaging
from scorefield.records.rundir import RunDir
from scorefield.schedules import VP
from tests.conftest import MIXTURE
from tests.data.test_images import write_mnist
from tests.training.tiny import compose_config

CONF = Path(conf_dir())
OPTIONS = {
    group: sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    for group in sorted(p.name for p in CONF.iterdir() if p.is_dir())
}
FROM_FILES = {"mnist", "fashion_mnist", "cifar10", "array", "folder", "celeba64", "lsun_church"}
NEEDS_GPU = {"gpu", "ddp"}

EXPERIMENTS = [name for name in OPTIONS["experiment"] if name.startswith(("digits", "toy_"))]
PUBLISHED = [name for name in OPTIONS["experiment"] if name not in (*EXPERIMENTS, "mnist", "cifar10")]


def small(*overrides: str, run_dir: Path) -> dict:
    """The configuration of one batch, with short sampling besides."""
    config = compose_config(*overrides, "debug=one_batch", f"run_dir={run_dir}")
    there = [name for name, node in config["callbacks"].items() if node]
    less = [
        *(["callbacks.samples.n=4"] if "samples" in there else []),
        *(["callbacks.loss_by_noise.n=4", "callbacks.loss_by_noise.levels=3"] if "loss_by_noise" in there else []),
        "likelihood.solver.rtol=1",
        "likelihood.solver.atol=1",
        *(["sampler.steps=2"] if "steps" in config["sampler"] else []),
    ]
    return compose_config(*overrides, "debug=one_batch", f"run_dir={run_dir}", *less)


def leaves(node) -> list:
    """The nodes to build: the node itself if it names a class, else what it holds."""
    if not isinstance(node, dict):
        return []
    return [node] if "_target_" in node else [leaf for value in node.values() for leaf in leaves(value)]


# Groups of other commands than train, and what their options cannot be made without.
OF_COMMANDS = {"observation": "sample", "constraint": "sample", "posterior": "sample", "edit": "edit"}
PLAIN = [
    (g, o)
    for g, options in OPTIONS.items()
    for o in options
    if g not in ("experiment", "debug", "hydra", "grid", *OF_COMMANDS, "sweep", "extractor")
]


@pytest.mark.parametrize(("group", "option"), PLAIN, ids=lambda value: value)
def test_every_option_composes_and_builds(tmp_path, group, option):
    missing = ["guidance.classifier.run_dir=nonesuch"] * (option == "classifier" and group == "guidance")
    config = compose_config(f"{group}={option}", f"run_dir={tmp_path}", *missing)
    if group == "data" and option in FROM_FILES:
        with pytest.raises(FileNotFoundError, match=r"data_dir=|SCOREFIELD_DATA|expected"):
            make_data(config).train()
        return
    if group == "trainer" and option in NEEDS_GPU and not torch.cuda.is_available():
        assert config["trainer"]["accelerator"] == "gpu"
        return
    nodes = leaves(config[group] if group in config else config["callbacks"][group])
    assert nodes or option == "none"
    if (group, option) == ("guidance", "classifier"):  # it reads another run
        with pytest.raises(UserError, match="nonesuch is not a run"):
            make(nodes[0])
        return
    with torch.device("meta" if group == "net" else "cpu"):  # the published networks have up to 296 million weights
        for node in nodes:
            make(node)


@pytest.mark.parametrize(
    ("group", "option"), [(g, o) for g in OF_COMMANDS for o in OPTIONS[g]], ids=lambda value: value
)
def test_every_option_of_other_commands_composes_and_builds(tmp_path, group, option):
    """Completed with what the command has: the shape of the data, an operator, a model."""
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:4] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    missing = [f"observation.path={tmp_path / 'mask.png'}"] * (option == "mask")
    config = compose_config(f"{group}={option}", "run_dir=x", *missing, name=OF_COMMANDS[group])
    node = config[group]
    if option == "none":
        assert node == {}
        return
    operator = Averaging((1, 8, 8), 2)
    parts = {
        "observation": {"shape": (3, 8, 8)},
        "constraint": {"operator": operator},
        "posterior": {"model": MixtureModel(VP(), **MIXTURE), "operator": operator},
        "edit": {},
    }[group]
    if group == "posterior" and option != "null_space":
        parts["std"] = 0.1
    made = make(node) if group == "edit" else make(node)(**parts)
    if group == "observation":
        x = torch.randn(2, 3, 8, 8)
        y = made.forward(x)
        assert 0 < y[0].numel() < x[0].numel()


@pytest.mark.parametrize("option", OPTIONS["sweep"])
def test_every_sweep_is_of_jobs_that_compose(option):
    composed = list(jobs("train", [f"sweep={option}"], multirun=True))
    assert len(composed) > 1
    assert [problem.text for job in composed for problem in job.problems] == []
    assert len({json.dumps(job.values, sort_keys=True, default=str) for job in composed}) == len(composed)


@pytest.mark.parametrize("option", OPTIONS["extractor"])
@pytest.mark.parametrize("command", ["stats", "evaluate"])
def test_every_extractor_is_one_of_the_commands_that_take_it(command, option):
    (composed,) = jobs(command, [f"extractor={option}", *(["out=a.npz"] if command == "stats" else [])])
    assert [problem.text for problem in composed.problems] == []
    assert issubclass(get_class(composed.values["extractor"]["_target_"]), FeatureExtractor)


@pytest.mark.parametrize("option", OPTIONS["grid"])
def test_every_grid_can_be_put_into_a_sampler(option):
    sampler = make(compose_config("experiment=digits_vp", f"grid@sampler.grid={option}")["sampler"])
    named = {"iddpm": "transferred"}  # files that are called after a method
    assert type(sampler.grid).__name__.lower() == named.get(option, option.replace("_", ""))


@pytest.mark.parametrize("option", [o for o in OPTIONS["data"] if o not in FROM_FILES])
def test_data_are_what_their_configuration_declares(option):
    config = compose_config(f"data={option}")
    data = make_data(config)
    split = data.train()
    assert list(split.x.shape[1:]) == config["data"]["shape"]
    classes = None if split.labels is None else int(split.labels.max()) + 1
    assert classes == config["data"]["classes"]


def test_a_wrong_declaration_is_refused():
    with pytest.raises(UserError, match=r"data.shape=\[3\].*has shape \[2\]"):
        make_data(compose_config("data=two_moons", "data.shape=[3]"))


# Parameters as printed by the authors or counted in their own networks; frozen frequencies included.
SIZES = {
    "ncsnpp_cifar10_ve": 62_758_915,
    "ddpmpp_cifar10_vp": 61_804_419,
    "ddpmpp_cifar10_subvp": 61_804_419,
    "edm_cifar10_vp": 55_733_891,
    "ddpm_cifar10": 35_746_307,
}


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_every_published_experiment_builds_at_full_size(tmp_path, experiment):
    """Without memory for the weights: shapes go through the network, the numbers of one level through the rest."""
    config = compose_config(f"experiment={experiment}", f"run_dir={tmp_path}")
    schedule, parametrization = make(config["schedule"]), make(config["parametrization"])
    t = torch.full((2,), 0.5, dtype=torch.float64)
    assert parametrization.label(schedule, t).isfinite().all()
    assert parametrization.input_scale(schedule, t).isfinite().all()
    with torch.device("meta"):
        net = make(config["net"])
        out = net(torch.zeros(2, *config["data"]["shape"]), torch.zeros(2))
    assert list(out.shape[1:]) == config["data"]["shape"]
    count = sum(p.numel() for p in net.parameters())
    assert count == SIZES.get(experiment, count)
    assert sum(p.numel() for p in net.parameters() if not p.requires_grad) in (0, 128)
    assert config["name"] == experiment
    for part in ("objective", "sampler", "times"):
        make(config[part])


def test_the_published_sizes_are_of_presets():
    assert set(PUBLISHED) >= SIZES.keys()


@pytest.mark.parametrize("experiment", [*EXPERIMENTS, "mnist", "cifar10"])
def test_every_experiment_builds_its_model(tmp_path, experiment):
    config = compose_config(f"experiment={experiment}", f"run_dir={tmp_path}")
    model = make(config["model"])
    x, t = torch.zeros(2, *config["data"]["shape"]), torch.full((2,), 0.5, dtype=torch.float64)
    cond = {"label": torch.tensor([0, 1])} if config["data"]["conditional"] else None
    assert model(x, t, cond).score.shape == x.shape
    assert config["name"] == experiment


@pytest.mark.timeout(120)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_survives_one_batch(tmp_path, experiment):
    """One step and every evaluation, at toy size; what it leaves is no finished run."""
    execute(small(f"experiment={experiment}", run_dir=tmp_path), RunDir(tmp_path))
    run = RunDir(tmp_path)
    assert run.report.is_file()
    made = run.figure("class_accuracy") if experiment.endswith("classifier") else run.final_samples
    assert made.is_file()
    assert not run.result.exists()
    assert run.checkpoints() == []


def test_images_from_files_survive_one_batch(tmp_path, monkeypatch):
    """The image callbacks, without Inception's weights: the run says what to do and goes on."""
    write_mnist(tmp_path / "mnist", packed=False)
    monkeypatch.setenv("SCOREFIELD_DATA", str(tmp_path))
    monkeypatch.delenv("SCOREFIELD_INCEPTION", raising=False)
    tiny = ["net.channels=8", "net.blocks=1", "data.batch_size=4", "net.attention=[]", "callbacks.likelihood.n_final=2"]
    few = ["callbacks.quality.n_final=10", "++data.dataset.held_out=10"]
    config = small("experiment=mnist", *tiny, *few, run_dir=tmp_path / "run")
    with pytest.warns(UserWarning, match="left out"):
        execute(config, RunDir(tmp_path / "run"))
    assert RunDir(tmp_path / "run").final_samples.is_file()


@pytest.mark.parametrize("option", OPTIONS["debug"])
def test_debug_presets_compose(option):
    for experiment in ("digits", "toy_rings", "cifar10"):
        config = compose_config(f"experiment={experiment}", f"debug={option}")
        assert config["name"].startswith("debug")


def test_overfitting_trains_on_a_single_batch(tmp_path):
    config = compose_config("experiment=digits", "debug=overfit", "data.batch_size=8", f"run_dir={tmp_path}")
    assert len(build(config).data.train_split) == 8


@pytest.mark.parametrize("command", ["evaluate", "sample"])
def test_other_commands_take_the_same_options(command):
    chosen = [("sampler", "pc"), ("sampler", "flow")] + [("likelihood", "exact")] * (command == "evaluate")
    for group, option in chosen:
        node = compose_config(f"{group}={option}", "run_dir=x", name=command)[group]
        assert make(node) == make(compose_config("experiment=digits_vp", f"{group}={option}")[group])


def test_a_name_that_does_not_exist_is_refused():
    with pytest.raises(errors.MissingConfigException, match="nonesuch"):
        compose_config("experiment=nonesuch")


def test_the_fingerprint_names_what_is_computed():
    """Neither place nor seed enters it, anything else does."""
    base = fingerprint(compose_config("experiment=digits"))
    same = [["seed=3"], ["outputs=/elsewhere"], ["run_dir=/elsewhere"], ["fresh=true"]]
    other = [["steps=7"], ["net.channels=64"], ["sampler=euler"], ["optim.optimizer.lr=0.1"], ["ema=exponential"]]
    assert all(fingerprint(compose_config("experiment=digits", *o)) == base for o in same)
    assert len({base, *(fingerprint(compose_config("experiment=digits", *o)) for o in other)}) == len(other) + 1


def test_runs_of_different_seeds_have_their_own_folders():
    folders = {compose_config(f"seed={seed}", "outputs=o")["run_dir"] for seed in (0, 1, 2)}
    assert len(folders) == 3
    assert compose_config("seed=1", "outputs=o")["run_dir"] == compose_config("seed=1", "outputs=o")["run_dir"]


def test_validations_off_whole_steps_are_refused(tmp_path):
    odd = ["trainer.val_check_interval=5", "trainer.accumulate_grad_batches=2"]
    with pytest.raises(UserError, match="val_check_interval=5 counts batches"):
        build(compose_config("experiment=toy_rings", f"run_dir={tmp_path}", *odd))
