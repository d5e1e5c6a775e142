"""CIFAR-10 as in the paper; the base of every other config: all settings stand here.

    python main.py --config=configs/cifar10.py --workdir=runs/cifar10

Expect FID 3.2 against the training set (EMA, 50,000 samples) after 800,000 steps; the loss
(mean squared error of the noise) is about 0.0295 at 47,000 steps and 0.028 at the end. The
paper took 10.6 hours on a TPU v3-8 (21 steps/s).

The pictures: a prepared `cifar10` of tensorflow-datasets is found in `data.dir`, in
$TFDS_DATA_DIR or in ~/tensorflow_datasets; without one it is downloaded (163 MB), which needs
`pip install -e ".[tf]"` once.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Every setting, at the paper's value for CIFAR-10."""
    config = ml_collections.ConfigDict()
    config.seed = 0

    config.data = ml_collections.ConfigDict(dict(
        name="cifar10",       # a TFDS name, "digits", "image_folder" or "npz"
        dir="",               # of the data sets, of the pictures, or the .npz; "": see above
        image_size=32,        # height, and width unless image_width says another; 0: as they are
        image_width=0,
        channels=3,           # 1, 3 or 4; 0: as the data are
        holdout=0,            # images set aside where there is no test split
        random_flip=True,     # mirror left and right, half of the images
        labels=False,         # train a class-conditional model
        num_classes=0,        # of it; 0: as many as the data have
        condition="",         # train an image-conditional model: "low_resolution", "noisy" (see
                              # pairs.py), or "stored" in the .npz
        condition_channels=0,                # of that image; 0: as the data are
        factor=2,             # of "low_resolution"
        on_device=True,       # keep the images on every GPU or TPU where they fit a 16th of it
    ))
    config.model = ml_collections.ConfigDict(dict(
        channels=128,
        channel_multipliers=(1, 2, 2, 2),
        num_res_blocks=2,
        attention_resolutions=(16,),
        dropout=0.1,
        num_heads=1,
        scale_shift=False,
        embedding_order="sin_cos",           # or "cos_sin"
        embedding_freq_shift=1,
        timestep_scale=1.0,                  # of t before its embedding
        downsample_padding="asymmetric",     # or "symmetric"
        norm_eps=1e-6,
        num_groups=0,                        # 0: 32, fewer in narrow networks
        dtype="float32",                     # of the torso: or "bfloat16"
    ))
    config.diffusion = ml_collections.ConfigDict(dict(
        schedule="linear",    # quadratic constant jsd warmup10 warmup50 cosine sigmoid betas
        num_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        betas=(),             # schedule="betas": these
        mean="eps",           # what the network predicts: or "x_0", "x_prev", "v"
        variance="fixed_large",              # or "fixed_small", "learned", "learned_range"
        loss="simple",        # vlb rescaled_vlb hybrid rescaled_hybrid (see losses.Objective)
        weighting="constant",                # of the squared error by t: or "min_snr", "p2"
        min_snr_gamma=5.0,
        p2_k=1.0,
        p2_gamma=1.0,
    ))
    config.train = ml_collections.ConfigDict(dict(
        num_steps=800_000,
        batch_size=128,       # on all devices together
        warm_start="",        # weights to start from: a workdir, a folder of diffusers, or a
                              # repository of the Hugging Face hub; ignored on resume
        accumulate=1,         # micro-batches a step, where a batch does not fit
        remat=False,          # or where memory is short: make what is inside the network's blocks
                              # again on the way back; a third more work, an eighth of it kept
        learning_rate=2e-4,
        warmup_steps=5000,
        t_sampling="uniform",                # or "antithetic", "importance"
        label_dropout=0.1,    # share of images whose label is hidden, for guidance
        grad_clip=1.0,        # global norm; 0: none
        ema_decay=0.9999,
        ema_warmup=False,     # min(ema_decay, (1 + step) / (10 + step)), for short runs
        extra_ema_decays=(),  # further averages, such as (0.999, 0.9995)
        matmul_precision="default",          # or "high", "highest"
        max_skipped=10,       # steps in a row without a finite loss and gradient, whose updates
                              # are skipped, that end the run
        debug_nans=False,     # run such a step again and name the layer; waits for every step
        log_every=100,
        wandb="",             # a project of Weights & Biases that gets the records too; "": none
        profile=(),           # first and last step to trace for TensorBoard, such as (20, 25)
        eval_every=5000,      # held-out loss
        eval_images=1024,     # 0: none
        checkpoint_every=5000,
        keep=2,               # newest checkpoints
        keep_every=100_000,   # and those of every so many steps; 0: none
        sample_every=10_000,
        sample_images=64,
        sample_num_steps=0,   # 0: all, or as many as a tenth of the run pays for
    ))
    config.sample = ml_collections.ConfigDict(dict(
        sampler="ancestral",  # ddim dpm_solver dpm_solver_2 dpm_solver_pp dpm_solver_pp_3
                              # dpm_solver_pp_sde heun (see sampling.Settings)
        num_steps=0,          # network calls an image; 0: all of the schedule
        eta=0.0,              # noise of ddim, to 1
        grid="uniform",       # of ancestral and ddim: or quadratic, trailing, "10,10,20"
        num_images=64,
        batch_size=0,         # at a time; 0: what fits
        clip=True,            # keep x_0 in [-1, 1] at every step
        rederive_eps=True,    # of ddim: eps follows the clipped x_0; False: the network's
        dynamic_threshold=0.0,               # a percentile such as 0.995 (see solvers); 0: off
        seed=0,
        labels=(),            # of a class-conditional model, in turn; (): all classes in turn
        guidance=1.0,         # classifier-free guidance scale; 1: none
        guidance_interval=(),                # steps t to guide at, such as (100, 700); (): all
        weights="ema",        # "raw", or one of extra_ema_decays such as "0.999"
        task="",              # instead of new images: interpolate slerp reconstruct inpaint
                              # img2img colourise diffuse strip (docs/editing.md)
        inputs=(),            # of the task: picture files, such as ("a.png", "b.png")
        mask="",              # of inpaint: a picture of the images' size, white where known
        strength=(0.5,),      # of img2img, and rows of interpolate: shares of all noising steps
        variants=4,           # results an input of img2img, inpaint, colourise; rows of slerp
                              # without inputs; images of strip
        resamplings=1,        # of inpaint, colourise: RePaint has 10 on num_steps=250
        jump_length=10,       # steps that each resampling goes back
    ))
    config.evaluate = ml_collections.ConfigDict(dict(
        metrics=("bpd",),     # bpd ode_bpd progressive fid sfid kid is precision_recall
                              # frechet_pixels sweep nearest_pixels nearest_features draws
        checkpoints="newest",                # or "all", "follow" (a running job), or a step
        best="",              # keep the best checkpoint by such as "bpd", "fid/train"
        split="test",         # of bpd, ode_bpd and draws
        num_images=0,         # of it; 0: all
        num_samples=50_000,   # of fid and the others on samples, drawn as `sample` says
        num_draws=16,         # of draws: how many for each condition
        rounding=True,        # samples to uint8, as files have them; the paper's had floats
        references=("train", "test"),        # or a folder of pictures, or an .npz
        inception="",         # the file of Inception's weights; "": in the cache, or fetched
        sweep_metric="fid",   # of sweep: which score, for each sampler and number of calls
        sweep_samplers=("ddim", "dpm_solver_pp"),
        sweep_steps=(10, 20, 50, 100),
        ode_steps=200,
        ode_probes=1,
        batch_size=0,         # images at a time; 0: what fits
        matmul_precision="highest",
        seed=0,
    ))
    return config.lock()
