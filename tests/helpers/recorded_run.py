"""A workdir as training, sampling and evaluating leave one, written without any of them."""

import json

import numpy as np

from ddpm_jax.configs import digits
from ddpm_jax.evaluation import job
from ddpm_jax.workdir import pictures, run_folder

SECRETS = ("xada", "secret-host", "/home", "Users")  # No page may hold them.


def noise(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 1), np.uint8)


def begun(workdir, **settings):
    """Only a config, with paths of the machine in it."""
    config = digits.get_config()
    config.data.dir = "/home/xada/data/my birds"
    config.train.warm_start = "gs://xada/models/first"
    config.evaluate.references = ("train", "/home/xada/birds.npz")
    config.sample.inputs = ("C:\\Users\\xada\\a.png",)
    config.update_from_flattened_dict(settings)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(run_folder.dump(config))
    (workdir / "owner.json").write_text('{"host": "secret-host"}')
    return workdir


def logged(workdir, **settings):
    """Also rows, as of a run that was interrupted before its first checkpoint."""
    begun(workdir, **settings)
    rows = [{
        "step": step, "loss": 10 / step, "learning_rate": 1e-3, "grad_norm": 0.5, "seconds": step,
        **{f"loss_quartile_{n}": 1 / n for n in (1, 2, 3, 4)}, "images_per_second": 100.0,
        **({"heldout_loss": 11 / step} if step % 500 == 0 else {}),
    } for step in range(50, 1001, 50)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return workdir


def recorded(workdir, **settings):
    """Also pictures and evaluations."""
    logged(workdir, **settings)
    for number, step in enumerate((500, 1000, 1500)):
        pictures.save_png(workdir / f"samples/step_{step:08d}.png", pictures.grid(noise(4, number)))
    sample = {name: value for name, value in digits.get_config().sample.items()}
    _drawn(workdir / "samples/ema_ddim", sample | {"sampler": "ddim", "num_steps": 50})
    _drawn(workdir / "samples/strip", sample | {"task": "strip"})
    np.savez(
        workdir / "samples/strip.npz", x_t=noise(20).reshape(5, 4, 8, 8, 1),
        x_0=noise(20, 1).reshape(5, 4, 8, 8, 1), calls_left=np.int32([1000, 750, 500, 250, 1]),
    )
    curve = "".join(f"{n},{3 * n / 9:g},{100 - 10 * n}\n" for n in range(10))
    rows = [
        _measured(workdir, "bpd", 4.5, {"standard_error": 0.1, "L_T": 1e-5}, {
            "rate_distortion.csv": f"reverse_steps,rate_bits_per_dim,distortion_rmse\n{curve}"}),
        _measured(workdir, "nearest_pixels", 0.0, {}, {"nearest.png": noise(6)}),
        _measured(workdir, "fid", 3.0, {"reference": "/home/xada/birds.npz",
                                        "remarks": ["Read /home/xada/birds.npz."]}, {}),
        _measured(workdir, "sweep", None, {"table": {"ddim": [4.0, 2.0]}}, {}),
    ]
    (workdir / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return workdir


def _drawn(stem, sample):
    asked = {"step": 1500, "sample": sample, "sha256": {"/home/xada/a.png": "0"}}
    stem.with_suffix(".json").write_text(json.dumps(asked))
    pictures.save_png(f"{stem}.png", pictures.grid(noise(4)))


def _measured(workdir, metric, value, rest, contents):
    protocol = {"version": 1, "step": 1500, "checkpoint": f"sha256:{workdir.name}",
                "weights": "ema", "seed": 0, "num_images": "all", "images": "sha256:1",
                "steps": [5, 10], "sweep_metric": "fid", "samplers": {"ddim": {}}}
    folder = workdir / f"evaluations/step_00001500/{metric}-{job.key(protocol)}"
    for name, content in contents.items():
        if isinstance(content, str):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
        else:
            pictures.save_png(folder / name, pictures.grid(content))
    return {"step": 1500, "metric": metric, "reference": None, "value": value, **rest,
            "protocol": protocol}
