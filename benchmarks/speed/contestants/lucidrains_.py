"""denoising_diffusion_pytorch (lucidrains) as a contestant, see `contest.py`.

`python -m benchmarks.speed.contestants.lucidrains_`. Its `Unet` is another network (7x7 input
convolution, linear attention at every level but the last). The width is the multiple of 8 with the
closest number of parameters. The loop is that of its `Trainer`.
"""

import torch
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from ema_pytorch import EMA

from benchmarks.speed.contestants.pytorch import DEVICE, Peer


def network(task):
    unet, wanted = task["unet"], task["parameters"]
    first = unet["block_out_channels"][0]
    mults = tuple(width // first for width in unet["block_out_channels"])

    def of_width(dim):
        return Unet(dim, dim_mults=mults, channels=task["shape"][0], dropout=unet["dropout"])

    def difference(dim):
        with torch.device("meta"):
            return abs(sum(p.numel() for p in of_width(dim).parameters()) - wanted)

    return of_width(min(range(max(8, first // 16 * 8), 2 * first + 1, 8), key=difference))


def process(task, network, num_timesteps, calls=None):
    return GaussianDiffusion(
        network, image_size=task["shape"][1:], timesteps=num_timesteps, sampling_timesteps=calls,
        objective="pred_noise", beta_schedule="linear", auto_normalize=False,
    ).to(DEVICE)


def loss(task, network):
    return process(task, network, task["process"]["num_train_timesteps"])


def average(network, grouped):
    ema = EMA(  # After every step, like the others; its Trainer does it every 10.
        network, beta=0.9999, update_after_step=0, update_every=1, use_foreach=grouped,
        include_online_model=False,
    )
    return ema.update, ema.state_dict


def chain(task, network):
    calls, steps = task["calls"], task["process"]["num_train_timesteps"]
    # Its ancestral chain visits every step, so the schedule has as many steps as there are calls.
    ancestral = task["task"] == "ancestral"
    diffusion = process(task, network, *((calls,) if ancestral else (steps, calls)))
    return lambda: diffusion.sample(task["batch_size"]).cpu().permute(0, 2, 3, 1).numpy()


if __name__ == "__main__":
    Peer("denoising-diffusion-pytorch", network, loss, average, chain).serve()
