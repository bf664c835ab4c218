"""scorefield stats, and evaluate with images of any origin."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from scorefield.cli import evaluate, images, stats
from scorefield.cli.app import run_app
from scorefield.data import Digits, Split
from scorefield.errors import BadFileError, UserError
from scorefield.metrics.features import DigitFeatures
from scorefield.metrics.fidelity import kernel_distance, precision_recall
from scorefield.metrics.frechet import FeatureStatistics, frechet_distance
from scorefield.records.result import Result

DATA = Digits()


def command(monkeypatch, module, name, *arguments):
    monkeypatch.setattr("sys.argv", [name, *arguments])
    run_app(name, module.main)


@pytest.fixture
def reference(tmp_path, monkeypatch):
    out = tmp_path / "test.npz"
    command(monkeypatch, stats, "stats", "data=digits", "extractor=digits", "split=test", f"out={out}")
    return out


def pictures(folder, x, zipped):
    """The images as pixels, in files."""
    shown = DATA.display(x)
    target = folder / ("images.zip" if zipped else "images")
    out = zipfile.ZipFile(target, "w") if zipped else None
    target.mkdir() if not zipped else None
    for i, image in enumerate(shown):
        buffer = io.BytesIO()
        Image.fromarray(image[0].numpy()).save(buffer, "PNG")
        if out is None:
            (target / f"{i:04d}.png").write_bytes(buffer.getvalue())
        else:
            out.writestr(f"{i:04d}.png", buffer.getvalue())
    if out is not None:
        out.close()
    return target


@pytest.mark.parametrize("kind", ["folder", "zip", "npz", "npy"])
def test_images_are_measured_against_a_file(tmp_path, monkeypatch, reference, kind):
    """By every way of giving them the same, and equal to the metrics taken by hand."""
    x = DATA.train().x[:120]
    if kind in ("folder", "zip"):
        path = pictures(tmp_path, x, kind == "zip")
    elif kind == "npz":
        path = tmp_path / "images.npz"
        np.savez(path, arr_0=x.permute(0, 2, 3, 1).numpy())
    else:
        path = tmp_path / "images.npy"
        np.save(path, x.numpy())
    asked = [f"images={path}", f"reference={reference}", "extractor=digits", f"out={tmp_path / 'record'}", "seed=3"]
    command(monkeypatch, evaluate, "evaluate", *asked)
    result = Result.read(tmp_path / "record" / "result.json")
    extractor = DigitFeatures()
    ours, real = extractor.extract(x), extractor.extract(DATA.test().x)
    expected = {
        "fd_digits": frechet_distance(FeatureStatistics.of(ours), FeatureStatistics.of(real)),
        "kid_digits": float(kernel_distance(ours, real, seed=3).value),
        "precision_digits": float(precision_recall(ours, real)[0].value),
        "recall_digits": float(precision_recall(ours, real)[1].value),
    }
    for name, value in expected.items():
        assert result.metrics[name].value == pytest.approx(value, rel=1e-5, abs=1e-9), name
    assert 1 < result.metrics["inception_score_digits"].value <= 10
    protocol = result.metrics["fd_digits"].protocol
    assert {"n": 120, "n_reference": 300, "data": "digits", "split": "test", "seed": 3}.items() <= protocol.items()
    assert result.metrics["fd_digits"].better == "less"


def test_moments_alone_give_the_distance_alone_and_say_so(tmp_path, monkeypatch, reference, capsys):
    with np.load(reference) as whole:
        np.savez(tmp_path / "moments.npz", mu=whole["mu"], sigma=whole["sigma"])
    np.save(tmp_path / "x.npy", DATA.train().x[:50].numpy())
    asked = [f"images={tmp_path / 'x.npy'}", f"reference={tmp_path / 'moments.npz'}", "extractor=digits"]
    command(monkeypatch, evaluate, "evaluate", *asked, "reference_n=300", f"out={tmp_path / 'record'}")
    assert "kernel distance, precision and recall are left out" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "record" / "result.json").read_text())["metrics"]
    assert sorted(metrics) == ["fd_digits", "inception_score_digits"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "either run_dir=RUN_DIR or images="),
        (["images=x", "run_dir=y"], "either run_dir=RUN_DIR or images="),
        (["images=x", "extractor=digits"], "give reference=FILE"),
        (["images=x", "reference=y"], "give extractor=inception"),
        (["images=x", "reference=nowhere.npz", "extractor=digits"], "nowhere.npz is not there"),
        (["images=x", "reference=REFERENCE", "extractor=inception"], "the Inception weights are not at"),
        (["images=nowhere", "reference=REFERENCE", "extractor=digits"], "nowhere does not exist"),
        (["images=nowhere.npz", "reference=REFERENCE", "extractor=digits"], "nowhere.npz is not there"),
        (["images=x", "n=10"], "n is about the weights of a run, and images=x has none"),
        (["images=x", "weights=raw"], "weights is about the weights of a run"),
        (["images=x", "sampler=ddim"], "sampler is about the weights of a run"),
        (["images=x", "only=[quality]"], "only is about the weights of a run"),
    ],
)
def test_mistakes_are_answered_in_words(monkeypatch, reference, capsys, arguments, words):
    monkeypatch.delenv("SCOREFIELD_INCEPTION", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(reference.parent / "hub"))
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, evaluate, "evaluate", *(a.replace("REFERENCE", str(reference)) for a in arguments))
    assert end.value.code == 2
    assert words in capsys.readouterr().err


def test_other_images_at_the_same_place_are_another_measurement(tmp_path, monkeypatch, reference, capsys):
    """Neither is lost; the same again is the same, and few images are refused."""
    monkeypatch.chdir(tmp_path)
    asked = ["images=x.npy", f"reference={reference}", "extractor=digits"]
    for first in (0, 50, 50):
        np.save("x.npy", DATA.train().x[first : first + 50].numpy())
        command(monkeypatch, evaluate, "evaluate", *asked)
    records = [Result.read(path) for path in (tmp_path / "outputs" / "images").glob("*/result.json")]
    assert len(records) == len({r.metrics["fd_digits"].value for r in records}) == 2
    hashes = {r.metrics["fd_digits"].protocol["images_hash"] for r in records}
    assert hashes == {Split(DATA.train().x[first : first + 50]).checksum() for first in (0, 50)}
    named = [*asked, "out=record"]
    command(monkeypatch, evaluate, "evaluate", *named)
    np.save("x.npy", DATA.train().x[:9].numpy())
    for words in ("images=x.npy are 9, too few to measure; give at least 10", "record holds another measurement"):
        with pytest.raises(SystemExit):
            command(monkeypatch, evaluate, "evaluate", *named)
        assert words in capsys.readouterr().err
        np.save("x.npy", DATA.train().x[:40].numpy())


def test_statistics_are_not_overwritten_and_of_the_right_images(tmp_path, monkeypatch, reference, capsys):
    before = reference.read_bytes()
    for asked, words in (
        (["extractor=digits", f"out={reference}"], "is there already"),
        (["extractor=digits", f"out={tmp_path / 'a.txt'}"], r"must end in .npz"),
        (["data=mixture", "extractor=digits", f"out={tmp_path / 'a.npz'}"], "has none; choose another"),
    ):
        with pytest.raises(SystemExit) as end:
            command(monkeypatch, stats, "stats", *asked)
        assert end.value.code == 2
        assert words in capsys.readouterr().err
    assert reference.read_bytes() == before


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((3, 8, 8, 1), np.float32),
        np.zeros((0, 1, 8, 8), np.uint8),
        np.full((3, 1, 8, 8), 17, np.uint8),
        np.zeros((3, 8, 8, 2), np.uint8),
    ],
    ids=["three axes", "floats", "empty", "too bright", "two channels"],
)
def test_arrays_that_are_no_images_are_refused(tmp_path, x):
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(BadFileError, match=r"x\.npy: expected"):
        images.read(tmp_path / "x.npy", 17)


def test_a_run_is_measured_against_a_file(tmp_path, monkeypatch, reference):
    """A checkpoint and a reference: the recorded distance is that to the file's images."""
    from tests.training.tiny import DIGITS, metrics

    run = tmp_path / "run"
    from scorefield.cli import train

    overrides = [f"++{o}" if "." in o.split("=")[0] else o for o in DIGITS]
    command(monkeypatch, train, "train", *overrides, "steps=2", "trainer.val_check_interval=2", f"run_dir={run}")
    command(monkeypatch, evaluate, "evaluate", f"run_dir={run}", f"reference={reference}")
    (folder,) = (run / "evaluations").iterdir()
    ours, theirs = metrics(folder)["fd_digits"], metrics(run)["fd_digits"]
    assert (ours["n_reference"], theirs["n_reference"]) == (300, 1347)
    assert ours["reference"] == str(reference)
    assert ours["floor"] == pytest.approx(0, abs=1e-6)  # the reference is the test split itself
    assert ours["value"] != pytest.approx(theirs["value"], rel=1e-3)


def test_missing_weights_are_the_users_to_mend():
    with pytest.raises(UserError, match="does not exist; leave it out"):
        stats.make_extractor(
            {"_target_": "scorefield.metrics.features.DigitFeatures", "_partial_": True, "weights": "nowhere"}, "cpu"
        )
