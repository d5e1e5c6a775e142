"""Which metrics there are, what each needs, and checks of `config.evaluate`."""

import ml_collections

from ddpm_jax import validation
from ddpm_jax import config as config_lib
from ddpm_jax.errors import UserError

SCORES = ("fid", "sfid", "kid", "is", "precision_recall", "frechet_pixels")
EVALUATIONS = ("bpd", "ode_bpd", "progressive", "draws", *SCORES, "sweep",
               "nearest_pixels", "nearest_features")
AGAINST_REFERENCES = ("fid", "sfid", "kid", "precision_recall", "frechet_pixels")
DRAWN = ("progressive", "sweep")  # Without a single value.
NEEDS_INCEPTION = ("fid", "sfid", "kid", "is", "precision_recall", "nearest_features")
OF_SAMPLES = (*NEEDS_INCEPTION, "frechet_pixels", "nearest_pixels")
HIGHER_IS_BETTER = ("is", "precision_recall")


def check_evaluation(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError naming the first setting by which nothing can be measured."""
    validation.check_numbers(config)
    settings = config.evaluate
    for metric in settings.metrics:
        if metric not in EVALUATIONS:
            raise UserError(
                f"config.evaluate.metrics has {metric!r}, which is not known; use some of "
                f"{', '.join(EVALUATIONS)}, written as --config.evaluate.metrics=\"('bpd',)\"."
            )
    if not settings.metrics:
        raise UserError(
            "config.evaluate.metrics=() asks for nothing; try "
            "--config.evaluate.metrics=\"('bpd',)\"."
        )
    which = settings.checkpoints
    if which not in ("newest", "all", "follow") and not which.isdigit():
        raise UserError(
            f"config.evaluate.checkpoints={which!r} must be newest, all, follow or a step; try "
            "--config.evaluate.checkpoints=newest."
        )
    if "sweep" in settings.metrics:
        _check_sweep(config)
    names = ["/".join(filter(None, item)) for item in measured(config) if item[0] not in DRAWN]
    if settings.best and settings.best not in names:
        raise UserError(
            f"config.evaluate.best={settings.best!r} is not measured; use one of "
            f"{', '.join(names)}, such as --config.evaluate.best={names[0]}."
            if names else f"config.evaluate.best={settings.best!r} needs a metric with a value; "
            "add such as 'bpd' to config.evaluate.metrics."
        )
    validation.check_precision("evaluate", settings.matmul_precision)


def _check_sweep(config):
    settings, found = config.evaluate, config_lib.schedule(config)
    if settings.sweep_metric not in SCORES:
        raise UserError(
            f"config.evaluate.sweep_metric={settings.sweep_metric!r} is no score of samples; use "
            f"one of {', '.join(SCORES)}."
        )
    if not settings.sweep_samplers:
        raise UserError(
            "config.evaluate.sweep_samplers=() leaves no rows; try "
            "--config.evaluate.sweep_samplers=\"('ddim', 'dpm_solver_pp')\"."
        )
    for sampler in settings.sweep_samplers:
        for steps in settings.sweep_steps:
            try:
                how = config_lib.read_sampling(config).with_sampler(sampler, steps)
                how.check()
                calls = how.num_calls(found)
            except ValueError as error:
                raise UserError(
                    f"config.evaluate.sweep_steps has {steps}, and {sampler!r} of "
                    f"config.evaluate.sweep_samplers cannot: {error}"
                ) from None
            if calls != steps:
                raise UserError(
                    f"config.evaluate.sweep_steps has {steps}, and {sampler!r} makes {calls} "
                    f"calls on config.sample.grid={config.sample.grid!r}; write "
                    "--config.sample.grid=uniform."
                )
            if config.diffusion.mean == "x_prev" and not how.by_grid:
                raise UserError(
                    f"config.evaluate.sweep_samplers has {sampler!r}, which cannot go with "
                    "config.diffusion.mean='x_prev'; use 'ancestral' and 'ddim' alone."
                )


def measured(config: ml_collections.ConfigDict) -> list[tuple[str, str | None]]:
    """(metric, reference or None) of everything that `config.evaluate` asks for."""
    settings = config.evaluate

    def references(metric):
        scored = settings.sweep_metric if metric == "sweep" else metric
        return map(str, settings.references) if scored in AGAINST_REFERENCES else (None,)

    return [(metric, against) for metric in settings.metrics for against in references(metric)]
