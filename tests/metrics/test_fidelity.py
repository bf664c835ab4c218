import numpy as np
import pytest
import torch
import torch_fidelity
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from scorefield.data.images import Digits
from scorefield.metrics.features import DigitFeatures
from scorefield.metrics.fidelity import inception_score, kernel_distance, precision_recall
from scorefield.metrics.frechet import FeatureStatistics, frechet_distance


@pytest.fixture(scope="module")
def features():
    extractor, data = DigitFeatures(), Digits()
    return extractor, data.test().x, data.validation().x


class Images(Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i]


class Adapter(FeatureExtractorBase):
    """Our digit features as an extractor that torch-fidelity creates itself."""

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)
        self.ours = DigitFeatures()

    @staticmethod
    def get_provided_features_list():
        return ("features", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "features"

    def forward(self, x):
        features = self.ours(x)
        named = {"features": features, "logits": self.ours.logits(features)}
        return tuple(named[name] for name in self.features_list)


def test_all_metrics_equal_torch_fidelitys_own_pipeline(features, monkeypatch):
    """Images in, numbers out, through their loop over a data set and their registry."""
    extractor, fake, real = features
    monkeypatch.setitem(torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY, "digits", Adapter)
    theirs = torch_fidelity.calculate_metrics(
        input1=Images(fake),
        input2=Images(real),
        feature_extractor="digits",
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=75,
        kid_subsets=20,
        rng_seed=5,
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
    )
    f, r = extractor.extract(fake), extractor.extract(real)
    kid = kernel_distance(f, r, subsets=20, seed=5)
    score = inception_score(extractor.logits(f), seed=5)
    precision, recall = precision_recall(f, r)
    fd = frechet_distance(FeatureStatistics.of(f), FeatureStatistics.of(r))
    # their features pass through float32 in other batches, and their kernel is taken in float32
    assert kid.value == pytest.approx(theirs["kernel_inception_distance_mean"], abs=2e-5)
    assert kid.spread == pytest.approx(theirs["kernel_inception_distance_std"], abs=2e-5)
    assert score.value == pytest.approx(theirs["inception_score_mean"], rel=1e-5)
    assert fd == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert precision.value == pytest.approx(theirs["precision"], abs=1e-6)
    assert recall.value == pytest.approx(theirs["recall"], abs=1e-6)
    assert kid.settings["subset_size"] == 75


def test_kernel_distance_is_the_unbiased_estimate():
    """Subsets of all that there is would be one estimate; here its mean over subsets against scikit-learn's kernel."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 6, generator=generator), torch.randn(50, 6, generator=generator) + 0.7

    def unbiased(a, b):
        def kernel(u, v):
            return polynomial_kernel(u, v, degree=3, coef0=1)  # its default gamma is 1 / D

        def off_diagonal(k):
            return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))

        return off_diagonal(kernel(a, a)) + off_diagonal(kernel(b, b)) - 2 * kernel(a, b).mean()

    estimate = kernel_distance(x, y, subsets=400)
    standard_error = estimate.spread / 400**0.5
    assert estimate.settings["subset_size"] == 20
    assert estimate.value == pytest.approx(unbiased(x.numpy(), y.numpy()), abs=4 * standard_error)
    assert estimate.value > 10 * standard_error  # and it sees the shift


def test_precision_and_recall_are_membership_in_balls():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 2, generator=generator) + 1.5, torch.randn(80, 2, generator=generator)

    def covered(points, centres):
        radius = NearestNeighbors(n_neighbors=4).fit(centres).kneighbors(centres)[0][:, 3]  # itself and three others
        distance = np.linalg.norm(points[:, None] - centres[None], axis=2)
        return (distance <= radius).any(1).mean()

    precision, recall = precision_recall(x, y)
    assert precision.value == pytest.approx(covered(x.numpy(), y.numpy()), abs=1e-6)  # a float32 mean
    assert recall.value == pytest.approx(covered(y.numpy(), x.numpy()), abs=1e-6)
    assert precision.value != recall.value


def test_inception_score_ends():
    sure = 100 * torch.eye(10).repeat(20, 1)
    # ten certain and equally frequent classes; parts of twenty drawn at random are not quite balanced
    assert inception_score(sure, splits=1).value == pytest.approx(10, rel=1e-9)
    assert inception_score(torch.zeros(200, 10)).value == pytest.approx(1, rel=1e-12)


def test_small_sets_are_refused():
    x = torch.randn(3, 4)
    with pytest.raises(ValueError, match="four examples"):
        kernel_distance(x, x)
    with pytest.raises(ValueError, match="neighbours=3"):
        precision_recall(x, x)
    with pytest.raises(ValueError, match="splits=10"):
        inception_score(x)
