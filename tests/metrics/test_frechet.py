import os

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.distributed as dist

from scorefield.metrics.frechet import FeatureStatistics, FrechetDistance, frechet_distance


def correlated(n, d, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator) / d**0.5
    return torch.randn(n, d, generator=generator) @ mix + shift


def with_moments(mean, variance, n=50):
    """Points whose sample mean and unbiased covariance are exactly ``mean`` and diag(``variance``)."""
    d = len(mean)
    x = torch.randn(n, d)
    x = torch.linalg.qr(x - x.mean(0)).Q  # orthonormal columns, each summing to zero
    return mean + x * (variance * (n - 1)).sqrt()


def test_diagonal_gaussians_have_the_closed_form():
    """For commuting covariances the distance is the sum of (difference of means)^2 and (of deviations)^2."""
    mean_a, mean_b = torch.randn(5), torch.randn(5)
    var_a, var_b = torch.rand(5) + 0.1, torch.rand(5) + 0.1
    a = FeatureStatistics.of(with_moments(mean_a, var_a))
    b = FeatureStatistics.of(with_moments(mean_b, var_b))
    expected = ((mean_a - mean_b).square() + (var_a.sqrt() - var_b.sqrt()).square()).sum()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-12)  # float64 eigenvalues of 5 x 5


@pytest.mark.parametrize(("n", "d"), [(400, 16), (2000, 64), (90, 64)])
def test_agrees_with_torch_fidelity(n, d):
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    x, y = correlated(n, d, 0), correlated(n + 31, d, 1, shift=0.3)
    theirs = fid_statistics_to_metric(fid_features_to_statistics(x), fid_features_to_statistics(y), False)
    ours = frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(y))
    assert ours == pytest.approx(theirs[KEY_METRIC_FID], rel=1e-6)  # their eigenvalues are of a product, ours symmetric


def test_only_symmetric_eigenproblems_are_solved(monkeypatch):
    """The eigenvalues of the product of both covariances take several times as long, and may be complex."""

    def refused(*_, **__):
        raise AssertionError("an eigenproblem that is not symmetric")

    for name in ("eig", "eigvals"):
        monkeypatch.setattr(torch.linalg, name, refused)
        monkeypatch.setattr(np.linalg, name, refused)
    monkeypatch.setattr(scipy.linalg, "sqrtm", refused)
    a, b = FeatureStatistics.of(correlated(300, 24, 0)), FeatureStatistics.of(correlated(200, 24, 1))
    assert frechet_distance(a, b) > 0


def test_fewer_examples_than_features():
    """Singular covariances: the trace of the root is the nuclear norm of the product of centred data matrices."""
    x, y = correlated(20, 64, 0), correlated(30, 64, 1, shift=0.2)
    cx, cy = (v - v.mean(0) for v in (x, y))
    nuclear = torch.linalg.svdvals(cx @ cy.T).sum() / (19 * 29) ** 0.5
    expected = (x.mean(0) - y.mean(0)).square().sum() + cx.square().sum() / 19 + cy.square().sum() / 29 - 2 * nuclear
    # roots of eigenvalues that are zero up to rounding: 64 sqrt(1e-16)
    assert frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(y)) == pytest.approx(
        float(expected), abs=1e-6
    )


def test_symmetric_and_zero_on_itself():
    a, b = FeatureStatistics.of(correlated(300, 24, 0)), FeatureStatistics.of(correlated(200, 24, 1))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)  # conditioning of the roots
    assert 0 <= frechet_distance(a, a) < 1e-12 * float(a.cov.trace()) * 24
    assert frechet_distance(a, b) > 0.1


def test_uneven_parts_add_up_to_one_pass():
    x, y = correlated(211, 12, 0), FeatureStatistics.of(correlated(200, 12, 1))
    whole = FeatureStatistics.of(x)
    parts = FeatureStatistics.of(x[:3]) + FeatureStatistics.of(x[3:150]).update(x[150:])
    assert parts.n == 211
    assert frechet_distance(parts, y) == pytest.approx(frechet_distance(whole, y), rel=1e-12)  # order of float64 sums
    reference = np.cov(x.numpy(), rowvar=False)
    assert np.allclose(parts.cov.numpy(), reference, rtol=0, atol=1e-12)
    assert np.allclose(parts.mean.numpy(), x.numpy().mean(0), rtol=0, atol=1e-13)


def test_standardised_distance_ignores_the_features_units():
    x, y = correlated(300, 8, 0), correlated(300, 8, 1, shift=0.5)
    units = torch.tensor([1e-2, 1.0, 30.0, 2.0, 5.0, 0.1, 1.0, 7.0])

    def standardised(x, y):
        a, b = FeatureStatistics.of(x), FeatureStatistics.of(y)
        return frechet_distance(a.divided_by(b.std), b.divided_by(b.std))

    assert standardised(x * units + 3, y * units + 3) == pytest.approx(standardised(x, y), rel=1e-9)
    direct = frechet_distance(FeatureStatistics.of((x - 1) / y.std(0)), FeatureStatistics.of((y - 1) / y.std(0)))
    assert standardised(x, y) == pytest.approx(direct, rel=1e-10)


def test_a_constant_feature_cannot_be_standardised():
    x = correlated(30, 4, 0)
    x[:, 2] = 1.5
    statistics = FeatureStatistics.of(x)
    with pytest.raises(ValueError, match=r"features \[2\]"):
        statistics.divided_by(statistics.std.where(statistics.std > 1e-6, 0.0))


def test_saved_statistics_come_back(tmp_path):
    a = FeatureStatistics.of(correlated(77, 6, 0), {"extractor": "digits", "split": "train", "standardised": False})
    a.save(tmp_path / "deep" / "train.npz")
    b = FeatureStatistics.load(tmp_path / "deep" / "train.npz")
    assert (b.n, b.protocol) == (77, a.protocol)
    assert torch.allclose(b.cov, a.cov, rtol=0, atol=1e-13)
    assert torch.allclose((a + b).cov, FeatureStatistics.of(correlated(77, 6, 0).repeat(2, 1)).cov, rtol=0, atol=1e-13)


def test_statistics_of_other_projects_need_their_size(tmp_path):
    np.savez(tmp_path / "other.npz", mu=np.ones(3), sigma=np.eye(3))
    with pytest.raises(ValueError, match="pass n"):
        FeatureStatistics.load(tmp_path / "other.npz")
    loaded = FeatureStatistics.load(tmp_path / "other.npz", n=50)
    assert torch.allclose(loaded.cov, torch.eye(3), rtol=0, atol=1e-13)


def test_different_extractors_have_no_distance():
    with pytest.raises(ValueError, match="different extractors"):
        frechet_distance(FeatureStatistics.of(torch.randn(5, 3)), FeatureStatistics.of(torch.randn(5, 4)))


def test_metric_in_float32_batches_is_the_distance_of_all():
    x, y = correlated(150, 10, 0).float(), correlated(100, 10, 1)
    reference = FeatureStatistics.of(y)
    metric = FrechetDistance(reference, reference.std).to(torch.bfloat16)  # the sums must not follow
    for batch in x.split(40):
        metric.update(batch)
    expected = frechet_distance(FeatureStatistics.of(x).divided_by(reference.std), reference.divided_by(reference.std))
    assert metric.total.dtype == metric.compute().dtype == torch.float64
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-12)
    metric.reset()
    metric.update(y)
    assert float(metric.compute()) < 1e-10  # the reference stays through a reset


def _worker(rank, folder, sizes):
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    from scorefield.metrics.bits_per_dim import BitsPerDim

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    first = sum(sizes[:rank])
    x = correlated(sum(sizes), 8, 0)[first : first + sizes[rank]]
    metric, bits = FrechetDistance(FeatureStatistics.of(correlated(100, 8, 1))), BitsPerDim(dims=8)
    for batch in x.split(16):
        metric.update(batch)
        bits.update(batch.sum(1))
    torch.save([metric.compute(), *bits.compute()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("sizes", [(100, 33)])
def test_two_uneven_processes_agree_with_one(tmp_path, sizes):
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.multiprocessing.spawn(_worker, (str(tmp_path), sizes), nprocs=2)
    x = correlated(sum(sizes), 8, 0)
    expected = frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(correlated(100, 8, 1)))
    bits = -x.sum(1).numpy() / 8 / np.log(2)
    for rank in range(2):
        distance, mean, error, n = torch.load(tmp_path / f"{rank}.pt")
        assert float(distance) == pytest.approx(expected, rel=1e-12)  # order of float64 sums
        assert float(mean) == pytest.approx(bits.mean(), rel=1e-12)
        assert float(error) == pytest.approx(bits.std(ddof=1) / len(bits) ** 0.5, rel=1e-10)
        assert int(n) == sum(sizes)
