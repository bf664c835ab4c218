"""Settings that are each right and do not go together.

Every check below is one function of a `Draft`; it yields what is wrong, or nothing. They run where each node can be
built by itself. `CHECKS` lists those of each command; to add one, write it and put it there.
"""

from collections.abc import Callable, Iterator, Mapping

from scorefield.cli.contradictions.draft import Draft
from scorefield.cli.contradictions.evaluation import (
    chain_has_levels,
    dequantisation_fits_data,
    evaluations_take_place,
    likelihood_has_a_density,
    quality_has_enough_samples,
    quality_knows_the_images,
)
from scorefield.cli.contradictions.machine import (
    batch_divides,
    counts_are_positive,
    device_exists,
    devices_exist,
    fused_optimizer_is_not_clipped,
    job_can_start_processes,
    name_is_a_folder,
    seed_is_one,
    something_is_validated,
    strategy_is_known,
    trainer_leaves_room,
    validation_interval,
)
from scorefield.cli.contradictions.network import (
    augmentation_is_told,
    classifier_is_trained_as_one,
    compute_is_heard,
    data_are_described,
    net_answers_the_model,
    net_fits_data,
    objective_fits_schedule,
    optimizer_takes_its_numbers,
)
from scorefield.cli.contradictions.sampling import (
    densities_are_known,
    guidance_can_be_stored,
    guidance_fits,
    observation_is_whole,
    pictures_are_given,
    sampler_fits_schedule,
    sampler_has_a_density,
    samplers_fit_schedule,
)

__all__ = ["CHECKS", "REMARKS", "Draft"]

CHECKS: Mapping[str, tuple[Callable[[Draft], Iterator[str]], ...]] = {
    "train": (
        counts_are_positive,
        seed_is_one,
        name_is_a_folder,
        trainer_leaves_room,
        devices_exist,
        strategy_is_known,
        batch_divides,
        job_can_start_processes,
        validation_interval,
        fused_optimizer_is_not_clipped,
        data_are_described,
        net_fits_data,
        net_answers_the_model,
        augmentation_is_told,
        classifier_is_trained_as_one,
        guidance_fits,
        guidance_can_be_stored,
        optimizer_takes_its_numbers,
        objective_fits_schedule,
        samplers_fit_schedule,
        densities_are_known,
        likelihood_has_a_density,
        dequantisation_fits_data,
        chain_has_levels,
        compute_is_heard,
        quality_knows_the_images,
        quality_has_enough_samples,
        evaluations_take_place,
    ),
    "evaluate": (counts_are_positive, seed_is_one, devices_exist, strategy_is_known, job_can_start_processes),
    "sample": (counts_are_positive, seed_is_one, device_exists, observation_is_whole),
    "edit": (counts_are_positive, seed_is_one, device_exists, pictures_are_given),
    "convert": (seed_is_one, name_is_a_folder, data_are_described),
    "recipe": (counts_are_positive, seed_is_one, data_are_described),
    "stats": (counts_are_positive, device_exists, data_are_described),
    "evaluation": (
        devices_exist,
        data_are_described,
        guidance_fits,
        samplers_fit_schedule,
        densities_are_known,
        likelihood_has_a_density,
        dequantisation_fits_data,
        chain_has_levels,
        quality_knows_the_images,
        quality_has_enough_samples,
        evaluations_take_place,
    ),
    "drawing": (sampler_fits_schedule, sampler_has_a_density, guidance_fits),
}
REMARKS: Mapping[str, tuple[Callable[[Draft], Iterator[str]], ...]] = dict.fromkeys(CHECKS, ()) | {
    "train": (something_is_validated,)
}
