"""Configurations: what is wrong is refused before anything is built, all at once."""

import subprocess
import sys
import time

import pytest

from scorefield.cli.app import refuse, refuse_mistakes
from scorefield.cli.check import mistakes
from scorefield.cli.compose import jobs
from scorefield.errors import UserError
from tests.cli.checked import SONGUNET, found


def refused(capsys, *arguments: str, command: str = "train") -> str:
    """Run the check as a command does; it must end with code 2. Returns what it says."""
    with pytest.raises(SystemExit) as end:
        refuse_mistakes(command, arguments)
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert "Traceback" not in said
    return said


@pytest.mark.parametrize("trainer", ["gpu", "ddp"])
def test_a_gpu_is_refused_only_where_there_is_none(trainer):
    import torch

    said = found(f"trainer={trainer}")
    assert (said == []) if torch.cuda.is_available() else (len(said) == 1 and "finds no GPU" in said[0])


MISTAKES = {
    "settings of calls for an energy": (["experiment=toy_exact_sm", "compute=low_memory"], "is for model=network"),
    "no block to compute again": (["experiment=toy_mixture", "compute=low_memory"], "MLP has no block that can be"),
    "a fitted dequantisation of points": (
        ["experiment=toy_mixture", "dequantisation=variational"],
        "is variational, which is for images of integer grey levels",
    ),
    "unknown key": (["stpes=3"], "stpes is not in conf/train.yaml; did you mean steps?"),
    "unknown key in a group": (["net.chanels=3"], "net.chanels is not in conf/net/unet_small.yaml; did you mean chann"),
    "key of a value": (["steps.x=3"], "steps is a value without keys"),
    "added key that nothing reads": (["+stepss=3"], "stepss is read by nothing; did you mean steps?"),
    "added key of a plain group": (["+data.batchsize=3"], "data.batchsize is read by nothing; did you mean batch_size"),
    "argument that a class does not take": (
        ["+net.droput=0.1"],
        "no argument of scorefield.nets.UNet; did you mean dr",
    ),
    "argument that a toy does not take": (
        ["experiment=toy_rings", "+data.dataset.n_trian=3"],
        "data.dataset.n_trian is no argument of scorefield.data.Rings; did you mean n_train?",
    ),
    "argument of Lightning": (["+trainer.devces=2"], "pytorch_lightning.Trainer; did you mean devices?"),
    "argument of torch": (["+optim.optimizer.weight_decy=0"], "torch.optim.Adam; did you mean weight_decay?"),
    "added key that is there": (["+steps=3"], "is there already; write steps=3"),
    "unknown option": (["sampler=ddmi"], "conf/sampler has no option 'ddmi'; did you mean ddim?"),
    "unknown group": (["samplr/x=ddim"], "conf/ has no group samplr/x; did you mean sampler?"),
    "group inside a group": (["sampler/grid=uniform"], "write grid@sampler.grid=uniform"),
    "group below another name": (["grid=uniform"], "Did you mean to override grid@sampler.grid?"),
    "name where a group belongs": (["sampler.grid=uniform"], "to choose a file of conf/ write grid@sampler.grid=NAME"),
    "text where a node belongs": (["sampler.predictor=heun"], "sampler.predictor='heun' must be a Kernel"),
    "group left out": (["ema=null"], "write ema=none; its options are"),
    "group that others need": (["~sampler"], "callbacks.samples.sampler cannot be filled in"),
    "syntax": (["name=a=b"], "cannot be read"),
    "syntax of a list": (["net.multipliers=[1,2"], "cannot be read"),
    "no override": (["digits"], "write key=value"),
    "sweep without multirun": (["seed=1,2"], "add --multirun"),
    "interpolation of nothing": (["name=${nothing}"], "Interpolation key 'nothing' not found"),
    "interpolation of itself": (["name=${name}"], "name cannot be filled in: Recursive interpolation"),
    "text for a number": (["net.channels=wide"], "net.channels='wide' must be a whole number"),
    "fraction for a count": (["steps=1.5"], "steps=1.5 must be a whole number"),
    "number for a switch": (["sampler.denoise_last=1"], "sampler.denoise_last=1 must be true or false"),
    "switch for a number": (["steps=true"], "steps=True must be a whole number"),
    "null for a number": (["net.channels=null"], "net.channels=None must be a whole number"),
    "not a number": (["times.law.std=nan"], "times.law.std=nan must be a number"),
    "number that no machine holds": (["seed=99999999999999999999"], "must be a whole number"),
    "value for a list": (["net.multipliers=2"], "net.multipliers=2 must be a list"),
    "wrong kind in a list": (["net.multipliers=[1,b]"], "net.multipliers[1]='b' must be a whole number"),
    "literal": (["trainer.precision=12"], "trainer.precision=12 must be"),
    "missing argument": (["~net.channels"], "net.channels is missing: scorefield.nets.UNet needs it"),
    "unknown class": (["schedule._target_=scorefield.schedules.VPE"], "does not exist; did you mean VP"),
    "unknown module": (["schedule._target_=scoreflow.VP"], "cannot be imported"),
    "abstract class": (
        ["sampler.predictor._target_=scorefield.kernels.Kernel"],
        "is abstract; choose one of Ancestral",
    ),
    "class of another kind": (
        ["net._target_=scorefield.schedules.EDM"],
        "net is made by scorefield.schedules.EDM, but",
    ),
    "class where a function belongs": (["callbacks.quality.extractor._partial_=false"], "must be a function"),
    "function where an object belongs": (["+schedule._partial_=true"], "schedule is made by scorefield.schedules.EDM"),
    "out of range": (["schedule.t_min=-1"], "schedule: t_min=-1 is the smallest noise level and must be positive"),
    "out of range in a network": (["+net.attention=[5]"], "net: attention=[5] must name levels from 0 to 1"),
    "out of range in a partial": (["optim.optimizer.lr=-1"], "optim.optimizer: Invalid learning rate: -1"),
    "out of range in a schedule of rates": (["optim.lr_schedule.warmup=2"], "optim.lr_schedule: warmup=2"),
    "steps": (["steps=0"], "steps=0 must be at least 1"),
    "seed": (["seed=-1"], "seed=-1 must not be negative"),
    "validation between steps": (
        ["trainer.val_check_interval=7", "trainer.accumulate_grad_batches=2"],
        "must be a positive multiple of trainer.accumulate_grad_batches=2",
    ),
    "clipping behind a fused optimiser": (
        ["trainer.precision=bf16-mixed"],
        "trainer.precision=bf16-mixed with optim.optimizer.fused=true cannot clip gradients",
    ),
    "arguments without a class": (["+callbacks.mine.every=3"], "it has arguments but no _target_"),
    "name": (["name=a/b"], "name='a/b' names a folder"),
    "samples": (["callbacks.quality.n=0"], "callbacks.quality.n=0 must be at least 1"),
    "image too small": (["net.multipliers=[1,1,1,1,1]"], "an image of 8x8 cannot be halved 4 times"),
    "batch": (
        ["trainer=ddp_cpu", "data.batch_size=3"],
        "data.batch_size=3 counts all processes and cannot be shared by 2",
    ),
    "accelerator": (["trainer.accelerator=gpuu"], "trainer.accelerator=gpuu is unknown"),
    "devices": (["trainer.devices=two"], "trainer.devices='two' must be a number"),
    "processes": (["trainer.devices=10000"], "trainer.devices=10000 processes, but there are"),
    "strategy": (["+trainer.strategy=dpp"], "trainer.strategy='dpp' is unknown; did you mean ddp?"),
    "ignored by Lightning": (["+trainer.callbacks=[]"], "is set by the run itself and would be ignored"),
    "two lengths": (["trainer.max_steps=5", "steps=3000"], "trainer.max_steps=5 and steps=3000 differ"),
    "one level, many asked for": (["schedule=constant"], "objective, model and schedule do not go together"),
    "one level, importance": (["schedule=constant", "times=importance"], "Constant has one noise level"),
    "nothing to denoise": (
        ["schedule=constant", "schedule.sigma=0", "times=uniform", "callbacks=none"],
        "objective, parametrization and schedule do not go together",
    ),
    "one level, sampled": (["schedule=constant", "times=uniform"], "callbacks.samples.sampler goes from noise to data"),
    "one level, no chain": (
        ["experiment=toy_cd", "sampler=ddim"],
        "has one level only; choose sampler=langevin or mala",
    ),
    "chains without an energy": (["objective=cd"], "contrastive divergence trains an energy, and a NetworkModel has"),
    "persistent chains at many levels": (
        ["experiment=toy_pcd", "schedule=vp"],
        "a persistent chain belongs to one noise level",
    ),
    "fewer chains than samples": (
        ["experiment=toy_pcd", "objective.chains=100"],
        "objective.chains=100 are fewer than the 512 samples of a batch",
    ),
    "vectors for an energy": (
        ["experiment=digits_energy", "net=unet_small"],
        "model=energy needs a net that returns one number per sample, but UNet returns events of shape [1, 8, 8]",
    ),
    "one number for a field": (
        ["experiment=toy_score_sm", "net=energy_mlp"],
        "model=network needs a net that returns events of shape [2], but EnergyMLP returns one number per sample",
    ),
    "truth that is not known": (
        ["experiment=toy_cd", "data=two_moons"],
        "callbacks.fisher compares with the truth, and two_moons has no density in closed form",
    ),
    "density of a field": (
        [
            "experiment=toy_score_sm",
            "callbacks.total_variation={_target_: scorefield.training.callbacks.TotalVariation, run_dir: x}",
        ],
        "callbacks.total_variation normalises a density, and model=network has a score only",
    ),
    "Metropolis test of a field": (["experiment=toy_score_sm", "sampler=mala"], "to a Metropolis test"),
    "times off the schedule": (["times=uniform", "times.t_min=-3", "schedule=ve"], "outside of VE"),
    "grid off the schedule": (["+sampler.grid.t_max=100"], "callbacks.samples.sampler: "),
    "flow off the schedule": (["+likelihood.t_min=100"], "callbacks.likelihood.flow.t_min=100 is outside of EDM"),
    "shape": (["data.shape=[1,9,9]"], "data.shape=[1, 9, 9], but digits has shape [1, 8, 8]"),
    "classes": (["data.classes=3"], "data.classes=3, but digits has 10 classes"),
    "classes that the network is not told": (["net.classes=10"], "net.classes=10 is never told a class"),
    "classes that the network does not know": (
        ["data.conditional=true"],
        "data.conditional=true, but net.classes=None",
    ),
    "guidance without classes": (["guidance=cfg"], "guidance steers towards a class, but the model is told none"),
    "guidance without dropout": (
        ["experiment=digits_cond", "data.label_dropout=0"],
        "guidance compares the model with itself without a class, which it has never been",
    ),
    "guidance of no level": (
        ["experiment=digits_cond", "guidance=cfg_interval", "guidance.low=9"],
        "guidance: low=9 and high=5.0 must be noise levels",
    ),
    "guidance by another run": (
        ["experiment=digits_cond", "guidance=classifier", "guidance.classifier.run_dir=nonesuch"],
        "guidance.classifier: UserError: nonesuch is not a run",
    ),
    "few samples": (
        ["callbacks.quality.n_final=5"],
        "callbacks.quality.n_final=5 are too few samples to measure quality; give at least 10",
    ),
    "one sample": (["callbacks.quality.n=1"], "callbacks.quality.n=1 are too few samples to measure quality"),
    "labels left out of none": (["data.label_dropout=0.1"], "data.label_dropout=0.1 leaves out labels that nobody is"),
    "labels always left out": (["experiment=digits_cond", "data.label_dropout=1"], "data.label_dropout=1 is a prob"),
    "augmentations that the network is not told": (
        ["augmentation=edm"],
        "augmentation tells the network 9 numbers, but net.augmentations=0; give net.augmentations=9",
    ),
    "augmentations that the network cannot tell apart": (
        ["augmentation=edm", *SONGUNET, "net.augmentations=4"],
        "augmentation tells the network 9 numbers, but net.augmentations=4",
    ),
    "augmentations of points": (
        ["experiment=toy_rings", "augmentation=edm"],
        "augmentation moves images, but data.shape=[2]; leave augmentation out",
    ),
    "augmentations for an energy": (
        ["experiment=digits_energy", "augmentation=edm"],
        "augmentation has to be told to the network, which EnergyModel does not; use model=network",
    ),
    "flips told and untold": (
        ["augmentation=edm", *SONGUNET, "data.flip=true"],
        "data.flip=true mirrors images untold, which augmentation does and tells; give data.flip=false",
    ),
    "augmentations of no probability": (
        ["augmentation=edm", *SONGUNET, "augmentation.p=1.5"],
        "augmentation: p=1.5 is a probability and must be in [0, 1]",
    ),
    "field for a classifier": (
        ["experiment=digits_classifier", "net=unet_small", "net.classes=10"],
        "model=classifier needs a net that returns 10 logits, but UNet returns [1, 8, 8]",
    ),
    "classifier without labels": (
        ["experiment=digits_classifier", "data.conditional=false"],
        "model=classifier learns the classes of the data; give data.conditional=true",
    ),
    "classifier with labels left out": (
        ["experiment=digits_classifier", "data.label_dropout=0.1"],
        "model=classifier needs every label",
    ),
    "classifier as a model of the data": (
        ["experiment=digits_classifier", "objective=denoising"],
        "model=classifier is no model of the data that Denoising could train",
    ),
    "samples of a classifier": (
        ["experiment=digits_classifier", "callbacks=digits"],
        "callbacks.samples samples from the model, and model=classifier is none of the data",
    ),
    "classes for a score model": (["objective=cross_entropy"], "CrossEntropy trains a Classifier, not a NetworkModel"),
    "points for an image network": (["experiment=toy_rings", "net=unet_small"], "must be (channels, height, width)"),
    "digits' features for points": (
        ["experiment=toy_rings", "callbacks=digits"],
        "measures images of 17 grey levels with DigitFeatures, but rings has none",
    ),
    "likelihood of data without a density": (
        ["experiment=toy_swiss_roll", "+data.dataset.std=0"],
        "callbacks.likelihood takes the likelihood of swiss_roll, which has no density as it is configured",
    ),
    "grey levels of points": (
        ["experiment=toy_rings", "bound=chain", "callbacks.bound.chain.levels=50"],
        "callbacks.bound is the bound of integer grey levels, and rings holds continuous data; choose bound",
    ),
    "a chain without levels": (["bound=chain"], "callbacks.bound.chain: levels=None takes those of a table, and EDM"),
    "a chain that does not fall": (
        ["schedule=ddpm", "bound=chain", "grid@callbacks.bound.chain.grid=ladder"],
        "callbacks.bound.chain: grid=Ladder() does not fall from level to level",
    ),
    "pictures' features for digits": (["callbacks=images"], "measures images of 256 grey levels"),
}


OBSERVATIONS = {
    "nothing to observe": (["observation=upper_half", "constraint=replacement"], "observation needs pictures"),
    "two sets of pictures": (
        ["observation=upper_half", "constraint=replacement", "images=x", "examples=2"],
        "give either images=FILE_OR_FOLDER or examples=NUMBER",
    ),
    "nothing that honours it": (["observation=upper_half", "examples=2"], "nothing honours it"),
    "pictures of which nothing is seen": (["examples=2"], "examples was given without an observation"),
    "a constraint to nothing": (["constraint=projection"], "constraint was given without an observation"),
    "a posterior of nothing": (["posterior=pigdm"], "posterior was given without an observation"),
    "noise of nothing": (["std=0.1"], "std=0.1 is the noise of an observation, and there is none"),
    "negative noise": (["std=-1"], "std=-1 is a deviation"),
    "a mask without a file": (["observation=mask"], "observation.path"),
}


@pytest.mark.parametrize(("arguments", "expected"), OBSERVATIONS.values(), ids=OBSERVATIONS.keys())
def test_half_an_observation_is_refused(arguments, expected):
    said = found("run_dir=x", *arguments, command="sample")
    assert any(expected in text for text in said), said


CONTRADICTIONS = {
    "a likelihood without a density": ["experiment=toy_swiss_roll", "+data.dataset.std=0"],
    "a schedule that the objective cannot use": ["schedule=constant"],
    "more devices than there are": ["trainer.devices=10000"],
    "a sweep of runs with several processes": ["-m", "seed=1,2", "trainer=ddp_cpu", "hydra/launcher=basic"],
    "a sweep over numbers of processes": ["-m", "hydra/launcher=basic", "trainer=ddp_cpu", "trainer.devices=1,2"],
    "a batch that cannot be shared": ["trainer=ddp_cpu", "data.batch_size=3"],
}


@pytest.mark.parametrize("arguments", CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_contradictory_settings_end_with_code_2(capsys, arguments):
    said = refused(capsys, *arguments)
    assert "nothing was started" in said


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_refused_with_what_to_do(arguments, expected):
    # times.t_min is an argument of the class that its file leaves at its default.
    arguments = [f"+{a}" if a.startswith("times.t_min") else a for a in arguments]
    said = found(*arguments)
    assert any(expected in text for text in said), said


def test_all_mistakes_are_named_at_once_and_once_each(capsys):
    said = refused(capsys, "stpes=3", "net=mlpp", "+foo=1", "schedule.t_min=abc", "sampler.steps=1.5", "seed=[")
    lines = said.strip().splitlines()
    # sampler.steps is interpolated in two callbacks and model.schedule repeats the schedule: each is said once.
    assert len(lines) == 7
    assert lines[-1] == "scorefield: 6 to mend; nothing was started"
    for word, file in (
        ("schedule.t_min='abc'", "conf/schedule/edm.yaml"),
        ("sampler.steps=1.5", "conf/sampler/edm_heu"),
    ):
        assert any(word in line and file in line for line in lines)


def test_mistakes_in_a_file_are_found(tmp_path, capsys):
    folder = tmp_path / "experiment"
    folder.mkdir()
    text = "# @package _global_\nname: mine\ndata_std: 0.7\nstpes: 3\nnet:\n  chanels: 3\n"
    (folder / "mine.yaml").write_text(text)
    said = refused(capsys, "--config-dir", str(tmp_path), "experiment=mine")
    assert "stpes is read by nothing; did you mean steps?" in said
    assert "net.chanels is no argument of scorefield.nets.UNet; did you mean channels?" in said
    (folder / "mine.yaml").write_text(text.replace("stpes", "steps").replace("chanels", "channels"))
    (folder / "torn.yaml").write_text("name: [a\nb: {")
    said = refused(capsys, "--config-dir", str(tmp_path), "experiment=torn")
    assert "torn" in said


def test_every_job_of_a_sweep_is_checked_before_the_first(capsys):
    said = refused(capsys, "--multirun", "seed=1,2", "sampler=ddim,ddmi", "net.channels=16,-16")
    assert "'sampler=ddmi'" in said
    assert "net: channels=-16" in said


def test_a_sweep_in_one_process_cannot_start_others(capsys):
    arguments = ("-m", "seed=1,2", "trainer=ddp_cpu", "hydra/launcher=basic")
    assert "each further process would repeat the whole sweep; use hydra/launcher=processes" in refused(
        capsys, *arguments
    )


def test_a_run_without_a_validation_is_remarked_on_and_accepted(capsys):
    refuse_mistakes("train", ["steps=10", "trainer.val_check_interval=1000"])
    assert "note: trainer.val_check_interval=1000 is more than steps=10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "arguments", "expected"),
    [
        ("sample", [], "run_dir must be given: run_dir=..."),
        ("sample", ["run_dir=x", "n=0"], "n=0 must be at least 1"),
        ("sample", ["run_dir=x", "weights=best"], "weights='best' must be one of 'ema', 'raw'"),
        ("sample", ["run_dir=x", "device=cuda:99"], "device='cuda:99' cannot be used"),
        ("sample", ["run_dir=x", "sampler=ddim", "sampler.steps=0"], "sampler: steps=0 must be at least 1"),
        ("sample", ["run_dir=x", "label=three"], "label='three' must be a whole number or null"),
        ("evaluate", ["run_dir=x", "likelihood=exakt"], "did you mean exact?"),
        ("evaluate", ["run_dir=x", "n=-1"], "n=-1 must be at least 1"),
        ("evaluate", ["run_dir=x", "trainer.accelerator=tpuu"], "is unknown"),
    ],
)
def test_the_other_commands_refuse_too(capsys, command, arguments, expected):
    assert expected in refused(capsys, *arguments, command=command)


def test_a_stored_configuration_is_checked_too():
    (composed,) = jobs("train", [])
    refuse(composed.values, "train", "config.yaml")
    with pytest.raises(UserError, match=r"(?s)config.yaml cannot be run:.*net.channels='x'.*steps='0'"):
        refuse(
            {**composed.values, "net": {**composed.values["net"], "channels": "x"}, "steps": "0"},
            "train",
            "config.yaml",
        )


def test_a_typing_error_is_answered_without_loading_lightning():
    code = (
        "import sys; from scorefield.cli.app import refuse_mistakes\n"
        "refuse_mistakes('train', ['steps=3'], thorough=False)\n"
        "assert 'pytorch_lightning' not in sys.modules and 'torchmetrics' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_refused_command_ends_with_code_2_and_leaves_nothing(tmp_path):
    command = [sys.executable, "-m", "scorefield.cli.main", "train", "stpes=3", f"outputs={tmp_path / 'runs'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "did you mean steps?" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_check_is_quick():
    (composed,) = jobs("train", [])
    mistakes(composed, "train", multirun=False)
    start = time.process_time()
    mistakes(composed, "train", multirun=False)
    assert time.process_time() - start < 0.3  # measured: 0.04 s
