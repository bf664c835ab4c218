"""NCSNv2's recipes against the published settings and the numbers derived from them."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from scorefield.techniques import ladder_ratio, langevin_step, largest_distance, level_excess, ncsnv2, overlap

# Song & Ermon 2020, table 4: dimensions, largest level, levels, corrections, step size; smallest level 0.01.
PUBLISHED = {
    "cifar10": (3072, 50, 232, 5, 6.184e-6),
    "celeba64": (12288, 90, 500, 5, 3.337e-6),
    "church": (27648, 140, 788, 4, 2.31e-6),
    "bedroom": (49152, 190, 1086, 3, 1.767e-6),
    "ffhq": (196608, 348, 2311, 3, 8.93e-7),
}


@pytest.mark.parametrize(("dims", "top", "levels", "corrections", "epsilon"), PUBLISHED.values(), ids=PUBLISHED)
def test_published_ladders(dims, top, levels, corrections, epsilon):
    ratio = (top / 0.01) ** (1 / (levels - 1))
    assert overlap(ratio, dims) == pytest.approx(0.566, abs=1.5e-3)  # recorded with three digits
    # The recorded step sizes have three or four digits.
    assert langevin_step(ratio, corrections) * 1e-4 == pytest.approx(epsilon, rel=2e-3)


@pytest.mark.parametrize(
    ("dims", "top", "levels"), [(3072, 50, 219), (12288, 90, 472), (27648, 140, 745), (49152, 190, 1026)]
)
def test_levels_at_an_overlap_of_one_half(dims, top, levels):
    # The recorded numbers of levels round one way or the other.
    assert 1 + math.log(top / 0.01) / math.log(ladder_ratio(dims, 0.5)) == pytest.approx(levels, abs=1)


def test_overlap_is_the_probability_it_stands_for():
    """Of |z| for z ~ N(0, gamma^2 I) in D dimensions to lie where |z| at the next level does, by sampling."""
    dims, ratio = 3072, 1.03
    norms = ratio * np.sqrt(stats.chi2(dims).rvs(200_000, random_state=0))
    inside = np.abs(norms - np.sqrt(dims)) < 3 * math.sqrt(0.5) * ratio
    # |z| is normal with deviation sigma / sqrt 2 up to O(D^-1/2) = 2 %, which is the tolerance.
    assert overlap(ratio, dims) == pytest.approx(inside.mean(), abs=0.02)


@pytest.mark.parametrize("dims", [1, 3072])
def test_equal_levels_overlap_by_three_deviations(dims):
    """At a ratio of one both shells are the same: what is within 3 of its deviations, erf(3 / sqrt 2)."""
    assert overlap(1.0, dims) == pytest.approx(math.erf(3 / math.sqrt(2)), abs=1e-12)


@pytest.mark.parametrize("corrections", [1, 5])
def test_the_excess_is_that_of_the_chain(corrections):
    """Of the recursion v <- (1 - eta)^2 v + 2 eta from gamma^2, data at one point."""
    ratio, step, variance = 1.3, 0.07, 1.3**2
    for _ in range(corrections):
        variance = (1 - step) ** 2 * variance + 2 * step
    assert level_excess(step, ratio, corrections) == pytest.approx(variance, rel=1e-12)


def test_the_step_size_is_the_best():
    best = langevin_step(1.1, 5)
    here = level_excess(best, 1.1, 5)
    everywhere = [level_excess(step, 1.1, 5) for step in np.geomspace(1e-6, 1, 20_001)]
    assert here > 1
    assert here <= min(everywhere) + 1e-12


def test_largest_distance_is_that_of_all_pairs():
    x = torch.randn(70, 3, 2) + 1e4
    expected = torch.cdist(x.flatten(1), x.flatten(1), compute_mode="donot_use_mm_for_euclid_dist").max()
    for chunk in (7, 70, 1000):
        assert largest_distance(x, chunk) == pytest.approx(float(expected), rel=1e-9)
    with pytest.raises(ValueError, match="1 examples"):
        largest_distance(x[:1])


def test_a_recipe_is_consistent():
    x = torch.randn(300, 8)
    recipe = ncsnv2(x, sigma_min=0.05, corrections=3, wanted=0.5)
    assert recipe.sigma_max == largest_distance(x)
    assert recipe.sigma_max / recipe.ratio ** (recipe.levels - 1) == pytest.approx(0.05, rel=1e-12)
    # The whole number of levels nearest to the wanted overlap: one more or less is further from it.
    for other in (recipe.levels - 1, recipe.levels + 1):
        ratio = (recipe.sigma_max / 0.05) ** (1 / (other - 1))
        assert abs(math.log(ratio / ladder_ratio(8, 0.5))) > abs(math.log(recipe.ratio / ladder_ratio(8, 0.5)))
    assert recipe.epsilon == pytest.approx(langevin_step(recipe.ratio, 3) * 0.05**2, rel=1e-12)


def test_in_few_dimensions_the_overlap_bounds_nothing():
    assert ladder_ratio(4) == math.inf
    assert overlap(1e9, 4) > 0.999
    assert overlap(ladder_ratio(5), 5) == pytest.approx(0.5, abs=1e-9)
    recipe = ncsnv2(torch.randn(300, 2), sigma_min=0.01)
    assert recipe.ratio == pytest.approx(2.0, rel=0.06)  # as near as a whole number of levels comes, of about ten


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: ladder_ratio(0), "dims=0"),
        (lambda: ladder_ratio(8, 1.2), r"wanted=1\.2"),
        (lambda: langevin_step(1.0, 5), r"ratio=1\.0"),
        (lambda: ncsnv2(torch.randn(9, 2), sigma_min=50.0), r"sigma_min=50\.0"),
    ],
)
def test_what_has_no_recipe_is_refused(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_the_command_prints_what_train_accepts():
    from scorefield.cli.check import mistakes
    from scorefield.cli.compose import jobs

    run = [sys.executable, "-m", "scorefield.cli.main", "recipe", "data=ncsn_mixture", "sigma_min=0.1"]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    command = said[said.index("scorefield train") :].replace("\\\n", " ").split()[2:]
    (composed,) = jobs("train", [*command, "data=ncsn_mixture", "net=mlp", "callbacks=toy", "likelihood=exact"])
    assert [p.text for p in [*composed.problems, *mistakes(composed, "train", False)] if p.fatal] == []
