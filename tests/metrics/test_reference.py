"""Statistics in files: what is written comes back, and what does not fit together is refused."""

import numpy as np
import pytest
import torch

from scorefield.data import Digits
from scorefield.errors import BadFileError, UserError
from scorefield.metrics.features import DigitFeatures
from scorefield.metrics.frechet import FeatureStatistics, frechet_distance
from scorefield.metrics.reference import Reference


@pytest.fixture(scope="module")
def extractor():
    return DigitFeatures()


@pytest.fixture(scope="module")
def images():
    return Digits().test().x[:70]


@pytest.mark.parametrize("batch_size", [1, 32, 70])
def test_moments_do_not_depend_on_the_batches_and_survive_the_file(tmp_path, extractor, images, batch_size):
    told = []
    found = Reference.of(extractor, images, {"data": "digits"}, batch_size, progress=told.append)
    assert sum(told) == 70
    found.save(tmp_path / "a.npz")
    back = Reference.load(tmp_path / "a.npz")
    features = extractor.extract(images).double()
    mean, cov = features.mean(0), torch.cov(features.T)
    assert torch.allclose(back.statistics.mean, mean, rtol=1e-5, atol=1e-5)  # float32 features of other batches
    assert torch.allclose(back.statistics.cov, cov, rtol=1e-4, atol=1e-5)
    assert torch.equal(back.features, found.features)
    assert back.statistics.n == 70
    assert back.statistics.protocol == {**extractor.protocol(), "data": "digits"}
    back.require(extractor, tmp_path / "a.npz")


def test_files_of_other_projects_hold_moments_alone(tmp_path, extractor, images):
    """mu and sigma of float64 (as EDM publishes them) are enough for the distance."""
    features = extractor.extract(images).double().numpy()
    np.savez(tmp_path / "edm.npz", mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    with pytest.raises(BadFileError, match="pass n"):
        Reference.load(tmp_path / "edm.npz")
    found = Reference.load(tmp_path / "edm.npz", n=70)
    assert found.features is None
    found.require(extractor, tmp_path / "edm.npz")
    ours = FeatureStatistics.of(extractor.extract(images))
    assert frechet_distance(found.statistics, ours) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "content",
    [
        {"mu": np.zeros(4), "sigma": np.zeros((3, 3))},
        {"mu": np.zeros(4), "sigma": np.full((4, 4), np.nan)},
        {"mu": np.zeros(4), "sigma": np.eye(4), "features": np.zeros((9, 4), np.float32)},
        {"sigma": np.eye(4)},
        {"mu": np.array({}, dtype=object), "sigma": np.eye(4)},
    ],
    ids=["sizes", "nan", "features", "missing", "pickle"],
)
def test_what_is_no_reference_is_refused(tmp_path, content):
    np.savez(tmp_path / "bad.npz", n=np.int64(10), **content)
    with pytest.raises(BadFileError, match=r"bad\.npz: expected"):
        Reference.load(tmp_path / "bad.npz")


def test_another_extractor_is_refused(tmp_path, extractor, images):
    found = Reference.of(extractor, images, {})
    other = FeatureStatistics(70, found.statistics.total, found.statistics.outer, {"extractor": "inception-v3-compat"})
    with pytest.raises(UserError, match=r"extractor=inception-v3-compat, and these images are measured with digits"):
        Reference(other).require(extractor, tmp_path / "a.npz")
    few = FeatureStatistics(70, found.statistics.total[:3], found.statistics.outer[:3, :3])
    with pytest.raises(UserError, match="has 3 features, and digits has 64"):
        Reference(few).require(extractor, tmp_path / "a.npz")
    with pytest.raises(ValueError, match="images is empty"):
        Reference.of(extractor, images[:0], {})
