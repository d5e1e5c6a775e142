"""diffusers as a contestant: `python -m benchmarks.speed.contestants.diffusers_`, see `contest.py`.

`UNet2DModel` with the loop of its example `train_unconditional.py`, but with Adam instead of AdamW,
and the loops of `DDPMPipeline` and `DDIMPipeline`.
"""

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel

from benchmarks.speed.contestants.pytorch import DEVICE, Peer


def loss(task, network):
    scheduler = DDPMScheduler.from_config(task["process"])
    num_timesteps = scheduler.config.num_train_timesteps

    def mean_loss(x_0):
        eps = torch.randn_like(x_0)
        t = torch.randint(0, num_timesteps, (len(x_0),), device=DEVICE)
        x_t = scheduler.add_noise(x_0, eps, t)
        return torch.nn.functional.mse_loss(network(x_t, t).sample.float(), eps)

    return mean_loss


def average(network, grouped):
    ema = EMAModel(
        network.parameters(), decay=0.9999, use_ema_warmup=True, power=3 / 4, foreach=grouped
    )
    ema.to(DEVICE)
    return lambda: ema.step(network.parameters()), ema.state_dict


def chain(task, network):
    kind = {"ancestral": DDPMScheduler, "ddim": DDIMScheduler}[task["task"]]
    settings = task["process"]
    if kind is DDIMScheduler:  # It has no variances with these names.
        settings = {name: x for name, x in settings.items() if name != "variance_type"}
    scheduler = kind.from_config(settings)

    def draw():
        scheduler.set_timesteps(task["calls"])
        x = torch.randn((task["batch_size"], *task["shape"]), device=DEVICE)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t).sample, t, x).prev_sample
        return (x / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).numpy()

    return draw


if __name__ == "__main__":
    Peer(
        "diffusers", lambda task: UNet2DModel(**task["unet"]), loss, average, chain
    ).serve()
