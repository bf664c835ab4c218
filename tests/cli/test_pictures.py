"""`sample` with observations and `edit`: from files to pictures, numbers and a protocol, and every refusal by name."""

import json

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from PIL import Image

from scorefield.cli import edit, sample
from scorefield.cli.pictures import Given, spread
from scorefield.cli.runs import load_run, newest_checkpoint
from scorefield.data import Digits
from scorefield.errors import BadFileError, UserError
from scorefield.metrics.features import file_hash
from scorefield.records.files import write_atomically
from scorefield.records.rundir import RunDir
from tests.training.tiny import classifier, compose_config, digits, fit


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A digits model of a few steps that is told classes, as its folder."""
    torch.set_default_dtype(torch.float32)
    path = tmp_path_factory.mktemp("conditional")
    config = digits(path, "data.conditional=true", "data.label_dropout=0.5", "net.classes=10", "steps=2")
    config["callbacks"] = dict.fromkeys(config["callbacks"]) | {"checkpoint": config["callbacks"]["checkpoint"]}
    fit(config)
    write_atomically(path / "config.yaml", yaml.safe_dump(config).encode())
    return path


def drawn(run, out, *overrides, command="sample"):
    config = compose_config(f"run_dir={run}", f"out={out}", *overrides, name=command)
    {"sample": sample, "edit": edit}[command].main(OmegaConf.create(config))
    name = {"sample": "samples", "edit": "edited"}[command]
    protocol = json.loads((out / "protocol.json").read_text())
    return dict(np.load(out / f"{name}.npz")), protocol, Image.open(out / f"{name}.png")


def write(path, level, size=(8, 8), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level).save(path)
    return path


@pytest.mark.parametrize("how", [["constraint=replacement"], ["posterior=pigdm", "std=0.1", "constraint=replacement"]])
def test_a_folder_of_pictures_is_filled_in(run, tmp_path, how):
    """Observed pixels are those of the files, in every sample; a row of the picture for each file."""
    for name, level in (("b.png", 255), ("a.png", 0)):
        write(tmp_path / "in" / name, level)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    arguments = ["observation=upper_half", "n=3", f"images={tmp_path / 'in'}", "sampler=ddim", "sampler.steps=3"]
    arrays, protocol, picture = drawn(run, tmp_path / "out", *arguments, *how)
    assert arrays["names"].tolist() == ["a.png", "b.png"]
    assert arrays["samples"].shape == (2, 3, 1, 8, 8)
    if len(how) == 1:  # with noise the observation itself is another
        assert (arrays["samples"][0, :, :, :4] == 0).all()
        assert (arrays["samples"][1, :, :, :4] == 16).all()
        assert arrays["observed"].shape == (2, 32)
    assert len(np.unique(arrays["samples"][:, :, :, 4:])) > 2
    assert picture.size == (6 * 52 - 4, 2 * 52 - 4)  # observed, three samples, their spread, the file; 48 pixels each
    assert protocol["observation"]["_target_"].endswith("Inpainting.rows")
    assert protocol["images"] == str(tmp_path / "in")
    assert ("posterior" in protocol, "constraint" in protocol) == (len(how) > 1, True)
    if len(how) > 1:  # the score is told of the noise that is added
        assert protocol["posterior"]["std"] == protocol["std"] == 0.1
    with pytest.raises(UserError, match=r"already holds samples"):
        drawn(run, tmp_path / "out", *arguments, *how)


def test_samples_of_a_picture_do_not_depend_on_the_batch(run, tmp_path):
    arguments = ["observation=average", "posterior=moments", "std=0.2", "label=3", "guidance=cfg", "sampler=ddim"]
    few = ["sampler.steps=2", "n=3", "examples=3"]
    one, other = (drawn(run, tmp_path / str(size), *arguments, *few, f"batch_size={size}")[0] for size in (2, 256))
    # A level may fall on the other side of a rounding: float32 layers round differently for other batch shapes.
    assert np.mean(one["samples"] != other["samples"]) < 0.01
    assert np.array_equal(one["observed"], other["observed"])
    assert np.array_equal(one["given"], Digits().test().x[:3].numpy())


def test_the_observations_noise_is_as_large_as_asked(run, tmp_path):
    arguments = ["observation=pixels", "observation.part=0.9", "constraint=projection", "examples=40", "n=1"]
    few = ["sampler=ddim", "sampler.steps=1"]
    clean, noisy = (drawn(run, tmp_path / std, *arguments, *few, f"std={std}")[0]["observed"] for std in ("0.0", "0.5"))
    noise = noisy - clean
    assert abs(noise.std() - 0.5) < 4 * 0.5 / (2 * noise.size) ** 0.5
    # A grey level lies in the middle of its interval, a seventeenth of [-1, 1].
    level = (clean + 1) * 17 / 2 - 0.5
    assert np.allclose(level, level.round(), atol=1e-5)


REFUSED = {
    "missing": (["images=nonesuch.png"], FileNotFoundError, r"nonesuch\.png does not exist"),
    "empty": (["images={empty}"], FileNotFoundError, "holds no PNG or JPEG image"),
    "size": (["images={large}"], BadFileError, "expected a PNG or JPEG of 8x8 pixels in mode L, found 9x8 in mode L"),
    "mode": (["images={colour}"], BadFileError, "found 8x8 in mode RGB"),
    "damage": (["images={broken}"], BadFileError, "that are none"),
    "colours of grey": (["examples=1", "observation=grey"], UserError, "Grey: shape=.* nothing is left to colour"),
    "blocks": (["examples=1", "observation=average", "observation.factor=3"], UserError, "factor=3"),
    "examples": (["examples=100000"], UserError, "examples=100000 must be between 1 and"),
    "class": (["examples=1", "label=11"], UserError, "label=11 must be between 0 and 9"),
    "guidance": (["examples=1", "guidance=cfg"], UserError, "guidance steers towards a class; give label"),
    "noise of dps": (["examples=1", "posterior=dps", "constraint=none"], UserError, "std=0.0 of DPS must be positive"),
    "weight": (["examples=1", "constraint=projection", "constraint.weight=2"], UserError, "weight=2"),
    "flow": (["examples=1", "sampler=flow"], UserError, "stops=1 holds the constraint at the end only"),
}


@pytest.mark.parametrize(("arguments", "error", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_filled_in_is_refused_by_name(run, tmp_path, arguments, error, words):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "large.png", 0, (9, 8))
    write(tmp_path / "colour.png", (1, 2, 3), mode="RGB")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    places = {
        name: tmp_path / (name if name == "empty" else f"{name}.png") for name in ("empty", "large", "colour", "broken")
    }
    arguments = [argument.format(**places) for argument in arguments]
    usual = ["constraint=replacement", "observation=upper_half", "sampler=ddim"]
    given = {argument.split("=")[0] for argument in arguments}
    with pytest.raises(error, match=words):
        drawn(run, tmp_path / "out", *(u for u in usual if u.split("=")[0] not in given), *arguments)
    assert not (tmp_path / "out").exists()


def test_a_grey_file_serves_a_model_of_colours(tmp_path):
    class Colours(Digits):
        shape = (3, 8, 8)

    path = write(tmp_path / "grey.png", 128)
    given = Given.read({"images": str(path), "examples": None}, Colours())
    assert given.x.shape == (1, 3, 8, 8)
    assert (given.x == 8).all()  # 128 of 255, in 17 levels


def test_pixels_come_back_from_what_is_displayed():
    data = Digits()
    x = torch.arange(17, dtype=torch.uint8).reshape(1, 1, 1, 17)
    assert torch.equal(data.from_pixels(data.display(x)), x)
    assert torch.equal(data.from_model(data.observable(x)), x)


def test_the_spread_is_on_one_scale():
    """No deviation is black, half of the range of grey is white; nothing is stretched to its own maximum."""
    samples = torch.zeros(2, 4, 1, 1, 2, dtype=torch.uint8)
    samples[0, :2, 0, 0, 0] = 16  # 0 and 16 in equal parts: deviation of 16 / sqrt 3 with the n - 1 of few samples
    shown = spread(Digits(), samples)
    assert shown[0].flatten().tolist() == [255, 0]
    samples[0, :2, 0, 0, 0] = 2
    assert abs(int(spread(Digits(), samples)[0, 0, 0, 0]) - 2 * 255 * (2 / 16) / 3**0.5) < 2
    assert (shown[1] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "forms"),
    [
        (["edit=sdedit", "edit.copies=3", "sampler=ddim", "sampler.steps=2"], 3),
        (["edit=interpolate", "edit.points=4", "edit.flow.solver.rtol=0.1", "edit.flow.solver.atol=0.1"], 4),
        (["edit=relabel", "edit.labels=[1,2]", "edit.flow.solver.rtol=0.1", "edit.flow.solver.atol=0.1"], 2),
    ],
    ids=["sdedit", "interpolate", "relabel"],
)
def test_pictures_are_edited(run, tmp_path, arguments, forms):
    arrays, protocol, picture = drawn(run, tmp_path / "out", "examples=2", *arguments, command="edit")
    assert arrays["edited"].shape == (2, forms, 1, 8, 8)
    assert np.array_equal(arrays["given"], Digits().test().x[:2].numpy())
    assert picture.size == ((forms + 1) * 52 - 4, 100)
    assert protocol["edit"]["_target_"].startswith("scorefield.editing.")


def test_an_edit_does_what_the_class_does(run, tmp_path):
    """The ends of an interpolation are the pictures, through files, transforms and rounding to levels."""
    arguments = ["edit=interpolate", "edit.points=2", "edit.flow.solver.rtol=1e-4", "edit.flow.solver.atol=1e-4"]
    arrays, _, _ = drawn(run, tmp_path / "out", "examples=2", *arguments, command="edit")
    assert np.array_equal(arrays["edited"][:, 0], arrays["given"])
    assert np.array_equal(arrays["edited"][:, 1], arrays["given"][[1, 0]])


def test_an_edit_that_cannot_be_made_is_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"edit: level=1000"):
        drawn(run, tmp_path / "out", "examples=1", "edit.level=1000", command="edit")
    path = write(tmp_path / "x.png", 9)
    with pytest.raises(UserError, match=r"edit: a Relabelling encodes pictures of known classes"):
        drawn(run, tmp_path / "out", f"images={path}", "edit=relabel", command="edit")
    drawn(run, tmp_path / "done", "examples=1", "edit.copies=1", "sampler=ddim", "sampler.steps=1", command="edit")
    with pytest.raises(UserError, match=r"already holds edited pictures"):
        drawn(run, tmp_path / "done", "examples=1", command="edit")
    assert not (tmp_path / "out").exists()


def test_the_protocol_says_which_class_and_which_weights(run, tmp_path):
    """The first class too; and the weights by what their checkpoint holds."""
    arguments = ["n=2", "sampler=ddim", "sampler.steps=1"]
    _, zeroth, _ = drawn(run, tmp_path / "zeroth", *arguments, "label=0")
    assert zeroth["label"] == 0
    newest = newest_checkpoint(RunDir(run))
    assert (zeroth["checkpoint"], zeroth["checkpoint_hash"]) == (newest.name, file_hash(newest))
    _, first, _ = drawn(run, tmp_path / "first", *arguments, "label=1")
    assert first["label"] == 1
    assert {key for key in zeroth if zeroth[key] != first[key]} == {"label"}


def test_samples_are_kept_whatever_becomes_of_the_picture(run, tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "save_png", stopped)
    with pytest.raises(KeyboardInterrupt):
        drawn(run, tmp_path / "out", "n=2", "sampler=ddim", "sampler.steps=1")
    assert np.load(tmp_path / "out" / "samples.npz")["samples"].shape == (2, 1, 8, 8)
    assert json.loads((tmp_path / "out" / "protocol.json").read_text())["n"] == 2


@pytest.mark.parametrize("command", ["sample", "edit"])
def test_a_place_that_cannot_be_written_to_is_refused_before_the_work(run, tmp_path, monkeypatch, command):
    def worked(*_, **__):
        pytest.fail("it worked before it looked")

    monkeypatch.setattr(sample, "draw", worked)
    monkeypatch.setattr(edit, "make", lambda _: worked)
    (tmp_path / "file").write_text("here already")
    arguments = ["n=2", "sampler=ddim"] if command == "sample" else ["examples=1"]
    with pytest.raises(UserError, match=r"out=.*file is no folder that can be written to: .*; give another out"):
        drawn(run, tmp_path / "file", *arguments, command=command)


@pytest.fixture(scope="module")
def steered(tmp_path_factory):
    """A model that knows no classes, and a classifier under the same schedule."""
    torch.set_default_dtype(torch.float32)
    folder = tmp_path_factory.mktemp("steered")
    for name, make in (("model", digits), ("classifier", classifier)):
        config = make(folder / name, "steps=2")
        config["callbacks"] = dict.fromkeys(config["callbacks"]) | {"checkpoint": config["callbacks"]["checkpoint"]}
        fit(config)
        write_atomically(folder / name / "config.yaml", yaml.safe_dump(config).encode())
    return folder


def test_a_classifier_steers_a_model_that_knows_no_classes(steered, tmp_path):
    """As docs/inverse_problems.md has it: the class goes to the classifier alone."""
    by = ["guidance=classifier", f"guidance.classifier.run_dir={steered / 'classifier'}", "guidance.scale=30"]
    usual = ["n=2", "sampler=ddim", "sampler.steps=3"]
    found = {
        label: drawn(steered / "model", tmp_path / str(label), *usual, *by, f"label={label}")[0]["samples"]
        for label in (2, 3)
    }
    assert not np.array_equal(found[2], found[3])
    with pytest.raises(UserError, match="guidance steers towards a class; give label"):
        drawn(steered / "model", tmp_path / "none", *usual, *by)
    with pytest.raises(UserError, match=r"label=3 was asked for, but digits was trained without classes; .*guidance"):
        drawn(steered / "model", tmp_path / "none", *usual, "label=3")
    with pytest.raises(UserError, match="classifier is a classifier, which knows classes of samples and no samples"):
        drawn(steered / "classifier", tmp_path / "none", *usual, "label=3")
    _, protocol, _ = drawn(
        steered / "model", tmp_path / "edited", "examples=2", *by, "label=3", "edit.copies=1", command="edit"
    )
    assert protocol["label"] == 3
    assert not (tmp_path / "none").exists()


def test_the_run_has_learnt_without_labels_too(run):
    """Dropped labels train the row of no class; loaded, the model answers with and without one."""
    model = load_run(run)
    x, t = torch.randn(2, 1, 8, 8), torch.ones(2)
    assert not torch.equal(model(x, t).out, model(x, t, {"label": torch.tensor([0, 1])}).out)
