"""The parts that contestants in PyTorch share: training loop, batches, checkpoints, the peak.

Mode "eager" follows their examples. "channels_last" adds what needs no compiler: that layout, and
the fused or grouped forms of Adam and the EMA. "compiled" adds `torch.compile`. On a GPU the torso
runs in bfloat16 by autocast, and what stays float32 uses TF32, as in XLA.
"""

import dataclasses
import importlib.metadata
import os
import tempfile
from collections.abc import Callable

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.contest import product_size, resident_peak, serve, stretch, timed

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM_IMAGES = 50_000  # In the data task, as in CIFAR-10.
torch.set_float32_matmul_precision("high")  # For a GPU; a CPU has one precision.


@dataclasses.dataclass(frozen=True)
class Peer:
    """The parts in which the contestants differ.

    Attributes:
        name: the package's name on PyPI.
        network: task -> module on the CPU.
        loss: (task, network) -> (x_0 [b, c, h, w] in [-1, 1] -> the mean loss).
        average: (network, whether grouped) -> (update, state for a checkpoint).
        chain: (task, network) -> (() -> one batch of images on the host).
    """

    name: str
    network: Callable[[dict], torch.nn.Module]
    loss: Callable[[dict, torch.nn.Module], Callable]
    average: Callable[[torch.nn.Module, bool], tuple[Callable, Callable]]
    chain: Callable[[dict, torch.nn.Module], Callable]

    def serve(self) -> None:
        """Takes part as `contest.serve` describes."""
        tasks = {
            "train": train, "ancestral": sampling, "ddim": sampling, "data": batches,
            "checkpoint": checkpoint, "start": start, "peak": peak,
        }
        serve(lambda task: tasks[task["task"]](self, task), peak_bytes)


def peak_bytes():
    """The peak memory of the GPU, or of the process on a CPU."""
    return torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else resident_peak()


def wait():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def autocast(task):
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=task["dtype"] == "bfloat16")


def layout(task):
    return torch.contiguous_format if task["mode"] == "eager" else torch.channels_last


def network_of(peer, task):
    """The network in the task's mode, and its facts."""
    torch.manual_seed(0)
    network = peer.network(task).to(DEVICE, memory_format=layout(task))
    counter, products = FlopCounterMode(display=False), sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), products, counter:  # It does not count a CPU's fused attention.
        network(torch.zeros(1, *task["shape"], device=DEVICE), torch.zeros(1, device=DEVICE))
    if task["mode"] == "compiled":
        network.compile()
    parameters = sum(p.numel() for p in network.parameters())
    return network, {"parameters": parameters, "flops": counter.get_total_flops()}


def steps(peer, task):
    """A function that makes a training step, the network's facts, and a function for the state."""
    network, facts = network_of(peer, task)
    tuned = task["mode"] != "eager"
    loss, (average, averaged) = peer.loss(task, network), peer.average(network, tuned)
    adam = torch.optim.Adam(network.parameters(), task["learning_rate"], fused=tuned or None)
    rate = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda step: min(1.0, step / task["warmup_steps"])
    )
    shape = (task["batch_size"], *task["shape"])
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    network.train()

    def step():
        x_0 = pixels.to(DEVICE, memory_format=layout(task)).float() / 127.5 - 1
        if task["random_flip"]:
            flips = torch.rand(len(x_0), 1, 1, 1, device=DEVICE) < 0.5
            x_0 = torch.where(flips, x_0.flip(-1), x_0)
        with autocast(task):
            value = loss(x_0)
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adam.step()
        rate.step()
        adam.zero_grad()
        average()

    def state():
        return {"model": network.state_dict(), "ema": averaged(), "adam": adam.state_dict()}

    return step, facts, state


def synchronised(call):
    def done():
        result = call()
        wait()
        return result

    return done


def start(peer, task):
    """Is ready after the first step; the driver measures the time."""
    synchronised(steps(peer, task)[0])()
    return {}, lambda: {}


def train(peer, task):
    step, facts, _ = steps(peer, task)
    _, first = timed(synchronised(step))
    return facts | {"first_call": first}, stretch(step, task["batch_size"], wait)


def sampling(peer, task):
    network, facts = network_of(peer, task)
    chain = peer.chain(task, network.eval())

    def draw():
        with torch.no_grad(), autocast(task):
            return chain()

    _, first = timed(draw)
    return facts | {"first_call": first}, stretch(draw, task["batch_size"], fewest=1)


class Pictures(Dataset):
    """Decoded uint8 images [n, h, w, c], converted like ToTensor and Normalize of `torchvision`."""

    def __init__(self, shape):
        channels, *size = shape
        self.pixels = np.random.default_rng(0).integers(
            0, 256, (NUM_IMAGES, *size, channels), np.uint8
        )

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        picture = torch.from_numpy(self.pixels[index]).permute(2, 0, 1).contiguous()
        return picture.float().div(255).sub(0.5).div(0.5)


def batches(peer, task):
    """Shuffled batches as floats on the device."""
    workers = {"workers": len(os.sched_getaffinity(0)), "one_process": 0}[task["mode"]]
    loader = DataLoader(
        Pictures(task["shape"]), batch_size=task["batch_size"], shuffle=True, drop_last=True,
        num_workers=workers, persistent_workers=workers > 0, pin_memory=DEVICE.type == "cuda",
    )

    def forever():
        while True:
            yield from loader

    examples = forever()

    def call():
        return next(examples).to(DEVICE)

    _, first = timed(synchronised(call))
    return {"first_call": first}, stretch(synchronised(call), task["batch_size"])


def checkpoint(peer, task):
    """Measures `torch.save` of network, EMA and optimizer; the loop waits for it."""
    step, facts, state = steps(peer, task)
    step()  # Adam has no state before.

    def save():
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state(), os.path.join(folder, "state.pt"))

    _, first = timed(save)
    return {"parameters": facts["parameters"], "on_disk": first}, stretch(save, 1, fewest=1)


def peak(peer, task):
    """Measures the rate of a large matrix product; a thing is one FLOP."""
    size = product_size(DEVICE.type)
    x = torch.full((size, size), 1e-3, dtype=getattr(torch, task["dtype"]), device=DEVICE)
    product = synchronised(lambda: x @ x)
    product()
    gpu = DEVICE.type == "cuda"
    return {
        "platform": "gpu" if gpu else "cpu",
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "versions": {name: importlib.metadata.version(name) for name in ("torch", peer.name)},
    }, stretch(product, 2 * size**3)
