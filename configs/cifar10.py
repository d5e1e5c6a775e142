"""CIFAR-10 as in the paper. The other configs start from this one; it lists every setting.

    python main.py --config=configs/cifar10.py --workdir=runs/cifar10

Expect FID 3.2 against the training set (EMA, 50,000 samples) after 800,000 steps. The loss (mean
squared error of the noise) is about 0.0295 at 47,000 steps and 0.028 at the end. The paper's run
took 10.6 hours on a TPU v3-8 (21 steps/s).

The images are `cifar10` of tensorflow-datasets, prepared in `data.dir`, $TFDS_DATA_DIR or
~/tensorflow_datasets. If it is missing it is downloaded (163 MB), which needs
`pip install -e ".[tf]"` once.
"""

import ml_collections

from ddpm_jax.configs import Config


def get_config() -> ml_collections.ConfigDict:
    """Every setting, with the paper's value for CIFAR-10."""
    config = Config()
    config.seed = 0

    config.data = Config(dict(
        name="cifar10",       # a TFDS name, "digits", "image_folder", "npz" or "hf"
        dir="",               # folder of TFDS or of images, or an .npz file; "": see above. Of "hf"
                              # a folder of save_to_disk, or a name of the hub
        image_column="",      # of "hf": the column of images; "": the first
        label_column="",      # of "hf": the column of labels; "": the first of classes
        image_size=32,        # height, and width unless image_width is set; 0: as the data
        image_width=0,
        channels=3,           # 1, 3 or 4; 0: as the data, which may then have any number
        range=(),             # low and high of pixels that are not uint8, which are -1 and 1: for
                              # example (0, 65535); of .npz, "hf" and folders of PNG and TIFF
        range_bins=0,         # of bits/dim: how many values a pixel has; 0: as the data
        holdout=0,            # images reserved for testing if there is no test split
        random_flip=True,     # mirror half of the images left to right
        augment=0.0,          # probability of each geometric transform of training images, which
                              # the network is told of (docs/training.md): 0.12 for small sets
        labels=False,         # train a class-conditional model
        num_classes=0,        # labels in 0..num_classes-1 are its classes as they are; 0: the
                              # labels that occur are the classes, in order
        class_names=(),       # in the order of the classes; (): those of the data
        vectors=(),           # train a model that is told numbers: ("age",), say, an array of the
                              # .npz, a column of the folder's metadata.csv, or a feature of TFDS
        vector_mean=(),       # the network gets the numbers less this mean, over vector_std; ():
        vector_std=(),        # those of the training images
        condition="",         # train an image-conditional model: "low_resolution", "noisy" (see
                              # data/image_pairs.py), or "stored" in the .npz
        condition_channels=0,                # channels of the condition; 0: as the data
        factor=2,             # of "low_resolution"
        on_device=True,       # keep the images on every GPU or TPU if they fit into a 16th of it
    ))
    config.model = Config(dict(
        channels=128,
        channel_multipliers=(1, 2, 2, 2),
        num_res_blocks=2,
        attention_resolutions=(16,),         # heights of the levels that attend
        dropout=0.1,
        num_heads=1,
        scale_shift=False,
        embedding_order="sin_cos",           # or "cos_sin"
        embedding_freq_shift=1,
        timestep_scale=1.0,                  # factor of t before its embedding
        downsample_padding="asymmetric",     # or "symmetric"
        norm_eps=1e-6,
        block_size=1,                        # side of the blocks of pixels that are channels to
                                             # the network: 2 or 4 for large images
        self_condition=False,                # tell the network its last x_0 (docs/training.md)
        num_groups=0,                        # 0: 32, or fewer in narrow networks
        dtype="float32",                     # of the torso; or "bfloat16"
    ))
    config.diffusion = Config(dict(
        schedule="linear",    # or rescaled_linear quadratic constant jsd warmup10 warmup50 cosine
                              # sigmoid betas; docs/training.md has their names elsewhere
        num_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        betas=(),             # the betas of schedule="betas"
        shift_size=0,         # move logSNR by 2 log(64 / shift_size), for images of so many pixels
                              # a side, larger than 64; 0: none
        zero_terminal_snr=False,             # leave nothing of x_0 at the last step; with mean "v"
                              # or "x_0", and sample.grid="trailing"
        mean="eps",           # what the network predicts; or "x_0", "x_prev", "v"
        variance="fixed_large",              # or "fixed_small", "learned", "learned_range"
        loss="simple",        # or vlb rescaled_vlb hybrid rescaled_hybrid (see losses.Objective)
        weighting="constant",                # of the squared error by t; or "min_snr", "p2",
                              # "sigmoid"
        min_snr_gamma=5.0,
        sigmoid_bias=2.0,
        p2_k=1.0,
        p2_gamma=1.0,
    ))
    config.train = Config(dict(
        num_steps=800_000,
        batch_size=128,       # on all devices together
        warm_start="",        # weights to start from: a workdir, a folder of diffusers, a
                              # repository of the Hugging Face hub, or a file with weights of
                              # this very network (see `from_state_dict`); ignored on resume
        accumulate=1,         # micro-batches per step, if a batch does not fit into memory
        remat=False,          # recompute the inside of the network's blocks in the backward pass:
                              # an eighth of the activations for a third more work
        shard_update=False,   # each device keeps and updates a share of the state (docs/scaling)
        learning_rate=2e-4,
        warmup_steps=5000,    # to that rate from 0, linearly
        schedule="constant",  # of the rate after the warm-up; or "cosine" or "linear" to the last
                              # step, "inverse_sqrt", "piecewise"
        decay_start=0,        # step at which a decay starts, if later than the warm-up's end
        end_learning_rate=0.0,               # of cosine and linear
        piecewise_steps=(),   # of piecewise: for example (400_000, 600_000)
        piecewise_scales=(),  # factors of the rate at these steps: for example (0.1, 0.1)
        weight_decay=0.0,     # of AdamW, times the rate; not of biases and norms; 0: Adam
        adam_b1=0.9,
        adam_b2=0.999,
        adam_eps=1e-8,
        t_sampling="uniform",                # or "antithetic", "importance"
        label_dropout=0.1,    # share of images whose label and numbers are hidden, for guidance
        grad_clip=1.0,        # global norm; 0: none
        ema_decay=0.9999,
        ema_warmup=False,     # min(ema_decay, (1 + step) / (10 + step)), for short runs
        extra_ema_decays=(),  # more averages, for example (0.999, 0.9995)
        ema_snapshot_every=0,                # steps between snapshots of two averages, from which
                              # one of any length is rebuilt later (docs/training); 0: none
        matmul_precision="default",          # or "high", "highest"
        max_skipped=10,       # end the run after this many steps in a row whose update was
                              # skipped because the loss or the gradient was not finite
        debug_nans=False,     # repeat such a step and name the layer; waits for every step
        log_every=100,        # steps between rows; 0 is never, as of all these periods
        wandb="",             # also log to this project of Weights & Biases; "": do not
        profile=(),           # first and last step to trace for TensorBoard: for example (20, 25)
        eval_every=5000,      # steps between held-out losses
        eval_images=1024,     # of the held-out loss; 0: do not compute it
        checkpoint_every=5000,               # and at the last step
        checkpoint_minutes=30.0,             # and one more at a logged row, if the last one is so
                                             # old; of these only the newest stays; 0: none
        keep=2,               # keep this many of the newest checkpoints
        keep_every=100_000,   # and one every this many steps; 0: no others
        sample_every=10_000,
        sample_images=64,
        sample_num_steps=0,   # 0: all, or as many as fit into a tenth of the run
    ))
    config.distill = Config(dict(
        teacher="",           # of --mode=distill: the workdir of a trained model
        start_steps=256,      # steps of DDIM to begin from: the first student has half
        end_steps=1,          # those of the last student
        num_steps=0,          # of the student of a phase: set by --mode=distill
    ))
    config.sample = Config(dict(
        sampler="ancestral",  # or ddim dpm_solver dpm_solver_2 dpm_solver_pp dpm_solver_pp_3
                              # dpm_solver_pp_sde unipc unipc_bh1 unipc_3 unipc_3_bh1 heun (see
                              # samplers.Settings)
        num_steps=0,          # network calls per image; 0: all steps of the schedule
        eta=0.0,              # noise of ddim, 0 to 1
        grid="uniform",       # steps of ancestral and ddim; or quadratic, trailing, "10,10,20"
        num_images=64,
        batch_size=0,         # images at a time; 0: what fits
        clip=True,            # keep x_0 in [-1, 1] at every step
        rederive_eps=True,    # ddim recomputes eps from the clipped x_0; False: the network's eps
        s_churn=0.0,          # noise that heun adds before its steps (Karras et al. 2022); 0: none
        s_min=0.0,            # where noise / signal is at least this
        s_max=0.0,            # and at most this; 0: no limit
        s_noise=1.0,          # factor of that noise
        dynamic_threshold=0.0,               # a percentile, for example 0.995; 0: off
        seed=0,
        labels=(),            # classes to draw in turn, numbers or names; (): all classes
        vectors=(),           # numbers to draw for in turn: for example ((20, 0.5), (30, 0.5)); ():
                              # those of the data
        guidance=1.0,         # classifier-free guidance scale; 1: none
        guidance_interval=(),                # guide at these t: for example (100, 700); (): all
        guidance_rescale=0.0,                # 0 to 1: give a guided output its contrast back
        guide_weights="",     # guide away from a worse model: a step of the same run, or another
                              # workdir; "": by labels (docs/conditioning.md)
        weights="ema",        # or "raw", one of extra_ema_decays: "0.999", or an average
                              # rebuilt from ema_snapshot_every: "sigma_rel=0.08"
        task="",              # edit instead: interpolate slerp reconstruct inpaint img2img
                              # colourise restore diffuse strip (docs/editing.md)
        inputs=(),            # image files of the task: for example ("a.png", "b.png")
        mask="",              # of inpaint, and restore with mask: an image file of the same size,
                              # white where known
        operator="",          # of restore: what made the inputs: blur:S downsample:K grey mask, or
                              # several, as "blur:1,downsample:2" (inference/operators.py)
        operator_noise=0.01,  # of restore: standard deviation of the noise in them, of -1 to 1
        operator_scale=1.0,   # of restore: of the guidance towards them
        strength=(0.5,),      # of img2img and interpolate: fractions of all noising steps
        variants=4,           # results per input of img2img, inpaint, colourise, restore; rows of
                              # slerp without inputs; images of strip
        resamplings=1,        # of inpaint, colourise; RePaint uses 10 with num_steps=250
        jump_length=10,       # steps that each resampling goes back
        pngs=False,           # also write each new image as a PNG of its own
        folder="",            # where the results go; "": samples in the workdir
    ))
    config.evaluate = Config(dict(
        metrics=("bpd",),     # or loss ode_bpd nats_ode progressive fid sfid kid is
                              # precision_recall density_coverage frechet_pixels sweep
                              # nearest_pixels nearest_features draws
        weights=(),           # several in turn, as of sample.weights: "('ema', 'sigma_rel=0.1')";
                              # (): that of sample.weights
        checkpoints="newest",                # or "all", "follow" (a run in progress), or a step
        best="",              # keep the best checkpoint by a metric: for example "fid/train"
        split="test",         # of bpd, ode_bpd, nats_ode and draws
        num_images=0,         # images of the split; 0: all
        num_samples=50_000,   # samples for fid and similar metrics, drawn as `sample` says
        num_draws=16,         # of draws: samples per condition
        rounding=True,        # round samples to uint8, as in files; the paper used floats
        references=("train", "test"),        # or a folder of images, or an .npz
        inception="",         # file of Inception's weights; "": cached, or downloaded
        sweep_metric="fid",   # of sweep: the score of each sampler and number of calls
        sweep_samplers=("ddim", "dpm_solver_pp"),
        sweep_steps=(10, 20, 50, 100),
        sweep_students="",    # the workdir of --mode=distill, for a row of its students of these
                              # many steps; "": none
        ode_steps=200,
        ode_probes=1,
        batch_size=0,         # images at a time; 0: what fits
        matmul_precision="highest",
        seed=0,
        folder="",            # where the results go; "": the workdir
    ))
    return config.lock()
