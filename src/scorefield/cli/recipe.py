"""scorefield recipe: NCSNv2's ladder, step size and number of levels, computed from a data set."""

import math
import shlex
import sys
from collections.abc import Sequence

import torch
from omegaconf import DictConfig, OmegaConf

from scorefield.cli.app import run_app
from scorefield.cli.runs import UserError, make_data
from scorefield.noise import StreamNoise
from scorefield.techniques import Recipe, ladder_ratio, ncsnv2


def options(recipe: Recipe, chosen: Sequence[str]) -> str:
    """The recipe as a command.

    Args:
        recipe: what was computed.
        chosen: options that say of which data, and what they need.
    """
    ladder = f"schedule=ladder schedule.sigma_min={recipe.sigma_min:g} schedule.sigma_max={recipe.sigma_max:.5g}"
    levels = f"times=ladder times.levels={recipe.levels} parametrization=ladder"
    step = f"sampler.corrector.step_size.epsilon={recipe.epsilon:.4g}"
    return " \\\n  ".join(
        [
            shlex.join(["scorefield", "train", *chosen]) + f" {ladder}",
            f"{levels} parametrization.label.levels={recipe.levels} objective=score_sde",
            f"sampler=annealed_langevin sampler.steps={recipe.levels} sampler.corrections={recipe.corrections}",
            f"{step} sampler.corrector.step_size.sigma_min={recipe.sigma_min:g} sampler.denoise_last=true",
        ]
    )


def main(config: DictConfig) -> None:
    """Print the recipe of the training split."""
    asked = OmegaConf.to_container(config, resolve=True)
    assert isinstance(asked, dict)
    data = make_data({str(key): value for key, value in asked.items()})
    split, noise = data.train(), StreamNoise(asked["seed"], "recipe")
    some = noise.permutation(len(split))[: asked["n"]]
    x = data.to_model(split.x[some], noise)
    try:
        recipe = ncsnv2(x.to(torch.float64), asked["sigma_min"], asked["corrections"], asked["overlap"])
    except ValueError as error:
        raise UserError(str(error)) from None
    dims = x[0].numel()
    print(f"{data.name}: {len(x)} of {len(split)} training examples of {dims} dimensions, in model space")
    print(f"  sigma_max    {recipe.sigma_max:.5g}  largest distance between two of them")
    print(f"  ratio        {recipe.ratio:.5f}  overlap of neighbouring levels {recipe.overlap:.3f}")
    print(f"  levels       {recipe.levels}  from {recipe.sigma_max:.5g} to sigma_min = {recipe.sigma_min:g}")
    print(
        f"  epsilon      {recipe.epsilon:.4g}  variance after {recipe.corrections} steps at a level is "
        f"{recipe.excess:.4f} of the level's"
    )
    if not math.isfinite(ladder_ratio(dims, asked["overlap"])):
        print(f"  in {dims} dimensions no ratio overlaps by as little as {asked['overlap']:g}: levels halve")
    # Points in the plane have networks and pictures of their own, which the default experiment has not.
    plane = [] if x[0].ndim == 3 else ["net=mlp", "callbacks=toy"]
    print(options(recipe, [a for a in sys.argv[1:] if a.startswith(("data=", "data."))] + plane))


if __name__ == "__main__":
    run_app("recipe", main)
