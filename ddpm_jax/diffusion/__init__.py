"""The diffusion process: schedule, forward and reverse steps, losses, likelihoods. Pure."""

from ddpm_jax.diffusion.process import (
    Images, Parameterization, Prediction, Timesteps, eps_from_x_0, model_log_variance, predict,
    predict_fn, q_mean_variance, q_posterior, q_sample, q_step, split_output, v_from_eps,
    x_0_from_eps, x_0_from_v, x_0_from_x_prev,
)

__all__ = [
    "Images", "Parameterization", "Prediction", "Timesteps", "eps_from_x_0", "model_log_variance",
    "predict", "predict_fn", "q_mean_variance", "q_posterior", "q_sample", "q_step",
    "split_output", "v_from_eps", "x_0_from_eps", "x_0_from_v", "x_0_from_x_prev",
]
