"""Models of diffusers: its files give its outputs and chains, and ours become such files."""

import dataclasses
import hashlib
import json
import pathlib
import pickle
import runpy
import shutil
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from numpy.testing import assert_allclose, assert_array_equal

import ddpm_jax
from ddpm_jax.diffusion import schedule as schedule_lib
from ddpm_jax.diffusion.process import Parameterization
from ddpm_jax.network.trained import Trained
from ddpm_jax.samplers.settings import Settings
from ddpm_jax.weights import state_dicts
from nonzero import TinyNet, nonzero_params, tiny_unet

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
FOLDER = FIXTURES / "diffusers"
SCRIPT = runpy.run_path(str(FIXTURES / "make_diffusers.py"))
with np.load(FOLDER / "outputs.npz") as stored:
    OUTPUTS = dict(stored)
HINT = "clip_sample=false: write sample\\(..., clip=False\\)"


@pytest.fixture(scope="module")
def plain():
    return ddpm_jax.from_pretrained(FOLDER / "plain")


@pytest.fixture(scope="module")
def conditional():
    with pytest.warns(UserWarning, match=HINT):
        return ddpm_jax.from_pretrained(FOLDER / "conditional")


def outputs(trained, name, **model_kwargs):
    x, t = SCRIPT["draws"](name)[0], jnp.array(SCRIPT["T"])
    run = jax.jit(lambda params: trained.model.apply(
        {"params": params}, x, t, train=False, **model_kwargs))
    return run(trained.params)


def same(a, b):
    """Asserts the same parameters, to the bit, and the same of everything else."""
    assert jax.tree.structure(a.params) == jax.tree.structure(b.params)
    jax.tree.map(assert_array_equal, a.params, b.params)
    assert_array_equal(a.schedule.beta, b.schedule.beta)
    assert (a.diffusion, a.image_shape) == (b.diffusion, b.image_shape)


def test_the_outputs_are_those_of_diffusers(plain, conditional):
    # float32 sums in another order, through some forty layers.
    assert_allclose(outputs(plain, "plain"), OUTPUTS["plain"], rtol=0, atol=1e-4)
    labels = jnp.array(SCRIPT["LABELS"])
    found = outputs(conditional, "conditional", labels=labels)
    assert_allclose(found, OUTPUTS["conditional"], rtol=0, atol=1e-4)
    assert all(np.abs(OUTPUTS[name]).std() > 0.1 for name in ("plain", "conditional"))


def test_the_settings_are_those_of_the_files(plain, conditional):
    assert plain.model == ddpm_jax.UNet(
        channels=4, channel_multipliers=(1, 2, 2), num_res_blocks=2, attention_resolutions=(4,),
        dropout=0.0, out_channels=1, num_groups=2,
    )
    assert plain.diffusion == Parameterization("eps", "fixed_large")
    assert plain.image_shape == (8, 8, 1)
    assert_array_equal(plain.schedule.beta, schedule_lib.linear().beta)
    assert conditional.model == ddpm_jax.UNet(
        channels=4, channel_multipliers=(1, 2, 2), num_res_blocks=1, attention_resolutions=(4,),
        dropout=0.2, out_channels=2, num_heads=2, scale_shift=True, embedding_order="cos_sin",
        embedding_freq_shift=0, downsample_padding="symmetric", norm_eps=1e-3, num_groups=2,
        num_classes=3,
    )
    assert conditional.diffusion == Parameterization("v", "learned_range")
    assert conditional.image_shape == (8, 12, 1)
    assert_array_equal(conditional.schedule.beta, schedule_lib.cosine(4000).beta)


def test_no_class_is_the_mean_of_classes_unless_the_last_label_is_it(conditional):
    rows = conditional.params["label_embedding"]["embedding"]
    assert rows.shape == (4, 16)
    assert_allclose(rows[3], rows[:3].mean(axis=0), rtol=1e-6)
    with pytest.warns(UserWarning, match=HINT):
        noted = ddpm_jax.from_pretrained(FOLDER / "conditional", null_label=True)
    assert noted.model.num_classes == 2
    assert_array_equal(noted.params["label_embedding"]["embedding"], rows[:3])


@pytest.mark.parametrize("chain", SCRIPT["CHAINS"])
def test_fifty_steps_are_those_of_diffusers(plain, chain, draw_given):
    x, noises = SCRIPT["draws"]("plain")
    steps = np.arange(0, 1000, 1000 // SCRIPT["STEPS"])  # "leading", as in its schedulers.
    eta = SCRIPT["CHAINS"][chain].get("eta", 0.0)
    settings = Settings(grid=steps)
    if chain != "DDPM":
        settings = Settings("ddim", grid=steps, eta=eta, rederive_eps=False)
    rngs = draw_given(noises[::-1])

    def run(params, x):
        denoise = ddpm_jax.denoise_fn(plain.replace(params=params))
        calls = range(len(steps) - 1, -1, -1)
        return settings.chain(plain.schedule).run(
            denoise, plain.diffusion, x, rngs, trajectory=calls)

    last, kept = jax.jit(run)(plain.params, x)
    # Their alpha_bar is a product in float32; an error is carried through 50 networks: seen 1.4e-3
    # with jax 0.12.
    assert_allclose(np.append(kept.x_t[1:], last[None], axis=0), OUTPUTS[chain], rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", ["plain", "conditional"])
def test_saved_and_read_again_it_is_the_same_to_the_bit(name, plain, conditional, tmp_path):
    trained = {"plain": plain, "conditional": conditional}[name]
    ddpm_jax.save_pretrained(trained, tmp_path / "saved")
    again = ddpm_jax.from_pretrained(tmp_path / "saved")
    same(again, trained)
    assert again.model == trained.model
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_what_is_saved_is_what_diffusers_wrote(plain, tmp_path):
    ddpm_jax.save_pretrained(plain, tmp_path / "saved")
    for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        theirs, ours = (json.loads((folder / name).read_text())
                        for folder in (FOLDER / "plain", tmp_path / "saved"))
        extra = {"_diffusers_version", "_null_label"}
        assert {k: v for k, v in ours.items() if k not in extra}.items() <= theirs.items(), name
    path = "unet/diffusion_pytorch_model.safetensors"
    theirs, ours = (safetensors.numpy.load_file(folder / path)
                    for folder in (FOLDER / "plain", tmp_path / "saved"))
    assert theirs.keys() == ours.keys()
    for key in theirs:
        assert_array_equal(theirs[key], ours[key], strict=True)


def tiny(**settings):
    """A `Trained` with each of our options that diffusers has too."""
    model = tiny_unet(**({"num_groups": 2} | settings))
    shape = (8, 8, model.out_channels)
    return Trained(nonzero_params(model, shape), model, schedule_lib.linear(20, 1e-3, 0.3),
                   Parameterization(), shape)


@pytest.mark.parametrize("change", [
    {"schedule": schedule_lib.cosine(50)},
    {"schedule": schedule_lib.quadratic(10)},
    {"schedule": schedule_lib.sigmoid(10), "diffusion": Parameterization("x_0", "fixed_small")},
    {"diffusion": Parameterization("v", "fixed_large")},
], ids=["cosine", "quadratic", "sigmoid", "v"])
def test_the_process_survives_to_the_bit(change, tmp_path):
    trained = tiny().replace(**change)
    ddpm_jax.save_pretrained(trained, tmp_path / "saved")
    same(ddpm_jax.from_pretrained(str(tmp_path / "saved")), trained)


def test_labels_and_conditions_survive(tmp_path):
    trained = tiny(num_classes=3, condition_channels=2, num_heads=4, scale_shift=True,
                   channel_multipliers=(1, 1))
    ddpm_jax.save_pretrained(trained, tmp_path / "saved", clip=False)
    with pytest.warns(UserWarning, match=HINT):
        again = ddpm_jax.from_pretrained(tmp_path / "saved")
    same(again, trained)
    assert again.model == trained.model


def test_groups_that_are_not_set_are_found(tmp_path):
    trained = tiny(num_groups=None, channels=8, channel_multipliers=(1,), attention_resolutions=())
    trained = trained.replace(params=jax.tree.map(jnp.asarray, trained.params))
    with pytest.raises(ValueError, match=r"model.num_groups=None is \[2, 4\] groups by width"):
        ddpm_jax.save_pretrained(trained, tmp_path / "saved")
    trained = tiny(num_groups=None, channels=128, channel_multipliers=(1,),
                   attention_resolutions=())
    ddpm_jax.save_pretrained(trained, tmp_path / "saved")
    assert ddpm_jax.from_pretrained(tmp_path / "saved").model.num_groups == 32


@pytest.mark.parametrize("message, change", [
    ("model=TinyNet cannot be expressed", {"model": TinyNet()}),
    ("model.timestep_scale=0.5 cannot be expressed", {"model": {"timestep_scale": 0.5}}),
    (r"model.num_heads=2 at \[8, 16\] channels cannot be expressed",
     {"model": {"num_heads": 2, "attention_resolutions": (8, 4)}}),
    ("diffusion.mean='x_prev' cannot be expressed", {"diffusion": Parameterization("x_prev")}),
    ("diffusion.variance='learned' cannot", {"diffusion": Parameterization("eps", "learned")}),
    ("respaced chain", {"schedule": schedule_lib.respace(schedule_lib.linear(20), [0, 9, 19])}),
])
def test_what_diffusers_lacks_is_refused(message, change, tmp_path):
    trained = tiny()
    if isinstance(change.get("model"), dict):
        change = {"model": dataclasses.replace(trained.model, **change["model"])}
    with pytest.raises(ValueError, match=message) as error:
        ddpm_jax.save_pretrained(trained.replace(**change), tmp_path / "saved")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_written_whole_or_not_at_all(plain, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match="full holds something already"):
        ddpm_jax.save_pretrained(plain, tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    ddpm_jax.save_pretrained(plain, tmp_path / "empty")
    assert (tmp_path / "empty" / "model_index.json").exists()

    def breaks(path, content):
        if path.suffix == ".safetensors":
            raise OSError("disk full")

    monkeypatch.setattr(type(epath.Path(tmp_path)), "write_bytes", breaks)
    with pytest.raises(OSError, match="disk full"):
        ddpm_jax.save_pretrained(plain, tmp_path / "broken")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "full"]


@pytest.fixture
def copied(tmp_path):
    """A copy of `plain`, and a function that changes settings in its JSON files."""
    folder = tmp_path / "copied"
    shutil.copytree(FOLDER / "plain", folder)

    def change(name, **settings):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        return folder

    return change


def refused(source, message):
    with pytest.raises(ValueError, match=message) as error:
        ddpm_jax.from_pretrained(source)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("setting, value, message", [
    ("_class_name", "UNet2DConditionModel", "_class_name=\"UNet2DConditionModel\""),
    ("down_block_types", ["DownBlock2D", "SkipDownBlock2D", "DownBlock2D"],
     "down_block_types=.*SkipDownBlock2D.* only DownBlock2D and AttnDownBlock2D"),
    ("up_block_types", ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D"], "as in down_block_types"),
    ("up_block_types", ["AttnUpBlock2D", "UpBlock2D"], "as many as of block_out_channels"),
    ("act_fn", "relu", "act_fn=\"relu\""),
    ("attention_head_dim", 3, "attention_head_dim=3 cannot be taken over"),
    ("resnet_time_scale_shift", "spatial", "resnet_time_scale_shift=\"spatial\""),
    ("resnet_time_scale_shift", "scale_shift", "attn_norm_num_groups=null"),
    ("attn_norm_num_groups", 1, "attn_norm_num_groups=1"),
    ("center_input_sample", True, "center_input_sample=true"),
    ("add_attention", False, "add_attention=false"),
    ("mid_block_type", None, "mid_block_type=null"),
    ("mid_block_scale_factor", 1.4, "mid_block_scale_factor=1.4"),
    ("time_embedding_type", "fourier", "time_embedding_type=\"fourier\""),
    ("time_embedding_dim", 64, "time_embedding_dim=64"),
    ("downsample_type", "resnet", "downsample_type=\"resnet\""),
    ("upsample_type", "resnet", "upsample_type=\"resnet\""),
    ("class_embed_type", "timestep", "class_embed_type=\"timestep\""),
    ("downsample_padding", 2, "downsample_padding=2"),
    ("freq_shift", 2, "freq_shift=2"),
    ("block_out_channels", [4, 6, 8], r"block_out_channels=\[4, 6, 8\]"),
    ("block_out_channels", "4", "block_out_channels=\"4\""),
    ("norm_num_groups", None, "norm_num_groups=null"),
    ("sample_size", None, "sample_size=null"),
    ("sample_size", 6, "does not divide by 4"),
    ("in_channels", 0, "in_channels=0"),
    ("out_channels", 2, "in_channels=1 .* has 2"),
    ("num_class_embeds", 3, "class_embedding.weight is missing"),
    ("layers_per_block", 3, "down_blocks.0.resnets.2.conv1.bias is missing"),
    ("layers_per_block", 1, r"up_blocks.1.resnets.1.conv1.weight is \(3, 3, 16, 8\)"),
    ("block_out_channels", [4, 4, 4], r"down_blocks.1.attentions.0.to_k.bias is \(8,\)"),
])
def test_a_network_that_ours_cannot_be_is_refused(copied, setting, value, message):
    refused(copied("unet/config.json", **{setting: value}), message)


@pytest.mark.parametrize("setting, value, message", [
    ("_class_name", "EulerDiscreteScheduler", "_class_name=\"EulerDiscreteScheduler\""),
    ("beta_schedule", "laplace", "beta_schedule=\"laplace\""),
    ("prediction_type", "flow", "prediction_type=\"flow\""),
    ("variance_type", "learned", "variance_type=\"learned\""),
    ("variance_type", "learned_range", "out_channels=1"),
    ("rescale_betas_zero_snr", True, "rescale_betas_zero_snr=true"),
    ("num_train_timesteps", 0, "num_train_timesteps=0"),
    ("trained_betas", [0.1, 2.0], r"beta\[1\]=2"),
    ("trained_betas", [0.1, "0.2"], "trained_betas=.* another kind of value"),
    ("beta_end", "0.02", "beta_end=\"0.02\" .* another kind of value"),
])
def test_a_process_that_ours_cannot_be_is_refused(copied, setting, value, message):
    refused(copied("scheduler/scheduler_config.json", **{setting: value}), message)


@pytest.mark.parametrize("settings, end", [
    ({"beta_schedule": "scaled_linear", "beta_end": 0.04}, [0.04, None]),
    # 1e-4 + (0.02 - 1e-4) / (1 + e^6): the sigmoid from -6 to 6 of GeoDiff.
    ({"beta_schedule": "sigmoid"},
     [1e-4 + 0.0199 / (1 + np.exp(-6)), 1e-4 + 0.0199 / (1 + np.exp(6))]),
    ({"trained_betas": [0.1, 0.2, 0.3]}, [0.3, 0.1]),
    ({"variance_type": "fixed_small_log", "prediction_type": "sample"}, [0.02, 1e-4]),
])
def test_other_schedules_are_read(copied, settings, end):
    trained = ddpm_jax.from_pretrained(copied("scheduler/scheduler_config.json", **settings))
    last, first = trained.schedule.beta[-1], trained.schedule.beta[0]
    assert_allclose(last, end[0], rtol=1e-12)
    assert end[1] is None or np.isclose(first, end[1], rtol=1e-12)
    if "variance_type" in settings:
        assert trained.diffusion == Parameterization("x_0", "fixed_small")


def test_what_is_left_out_has_the_defaults_of_diffusers(copied, tmp_path):
    folder = copied("unet/config.json")
    path = folder / "unet" / "config.json"
    kept = json.loads(path.read_text())
    for name in ("downsample_padding", "flip_sin_to_cos", "freq_shift", "norm_eps"):
        del kept[name]
    path.write_text(json.dumps(kept))
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    trained = ddpm_jax.from_pretrained(folder)
    assert trained.model == dataclasses.replace(
        ddpm_jax.from_pretrained(FOLDER / "plain").model, downsample_padding="symmetric",
        embedding_order="cos_sin", embedding_freq_shift=0, norm_eps=1e-5,
    )
    assert trained.diffusion == Parameterization("eps", "fixed_small")


def test_how_its_scheduler_clips_is_told(copied):
    for settings, line in (
        ({"thresholding": True, "dynamic_thresholding_ratio": 0.9}, "dynamic_threshold=0.9"),
        ({"clip_sample_range": 2.0, "thresholding": False}, "clip_sample_range=2.0"),
    ):
        with pytest.warns(UserWarning, match=line):
            ddpm_jax.from_pretrained(copied("scheduler/scheduler_config.json", **settings))


def rewritten(folder, change):
    """The safetensors file of a folder, changed."""
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = safetensors.numpy.load_file(path)
    change(state)
    safetensors.numpy.save_file(state, path)
    return folder


def test_names_of_old_files_are_known(copied, plain):
    renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def age(state):
        for name in list(state):
            for today, then in renamed.items():
                if f".attentions.0.{today}." in name:
                    state[name.replace(today, then)] = state.pop(name)
        assert "mid_block.attentions.0.query.weight" in state

    same(ddpm_jax.from_pretrained(rewritten(copied("model_index.json"), age)), plain)


def test_half_precision_becomes_float32(copied, plain):
    def halve(state):
        for name in state:
            state[name] = state[name].astype(np.float16)

    again = ddpm_jax.from_pretrained(rewritten(copied("model_index.json"), halve))
    for now, before in zip(jax.tree.leaves(again.params), jax.tree.leaves(plain.params)):
        assert_array_equal(now, np.float32(np.float16(before)), strict=True)


def test_damaged_folders_are_refused(copied, tmp_path):
    refused(tmp_path / "none", "is no folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "has no unet/config.json and no config.json")
    folder = copied("model_index.json")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    for part in (b"", whole[:100], whole[:-4]):
        weights.write_bytes(part)
        refused(folder, "diffusion_pytorch_model.safetensors is damaged")
    weights.write_bytes(whole)
    refused(rewritten(folder, lambda state: state.update({
        "conv_in.weight": np.zeros((4, 1, 5, 5), np.float32)})), "conv_in.weight is ")
    weights.write_bytes(whole)
    refused(rewritten(folder, lambda state: state.update({
        "more.weight": np.zeros(3, np.float32)})), "more.weight has no place in the network")
    refused(rewritten(folder, lambda state: state.clear()), "are of no known format")
    weights.unlink()
    refused(folder, "has no unet/diffusion_pytorch_model.safetensors")
    (folder / "scheduler" / "scheduler_config.json").unlink()
    refused(folder, "has no scheduler/scheduler_config.json")
    (folder / "unet" / "config.json").write_text("{")
    refused(folder, "cannot be read as JSON")
    (folder / "unet" / "config.json").write_text("[]")
    refused(folder, "holds no settings")


def test_a_pickle_that_wants_to_run_does_not(copied, tmp_path):
    class Runs:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "ran",))

    folder = copied("model_index.json")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with zipfile.ZipFile(folder / "unet" / "diffusion_pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"conv_in.weight": Runs()}))
    refused(folder, "which is not run")
    assert not (tmp_path / "ran").exists()


def test_every_name_is_used_once(plain, conditional):
    for trained in (plain, conditional):
        state = state_dicts.from_params(trained.params, trained.model, 8)
        assert len(state) == len(jax.tree.leaves(trained.params))


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """The hub's cache, empty and without a network; returns its folder."""
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def fails(*arguments, **keywords):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(HfApi, "model_info", fails)
    return tmp_path / "cache"


def test_a_repository_is_read_from_the_cache_without_a_network(offline, plain):
    refused("someone/plain", "could not be fetched .ConnectionError: no route to the hub.; go onl")
    repository = offline / "models--someone--plain"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(FOLDER / "plain", snapshot)
    same(ddpm_jax.from_pretrained("someone/plain"), plain)
    (snapshot / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    refused("someone/plain", "not in the hub's cache, and could not be fetched")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one repository: its record of the large file, and the fetched folder."""
    import huggingface_hub
    from huggingface_hub.hf_api import BlobLfsInfo, RepoSibling

    known, folder = huggingface_hub.snapshot_download, tmp_path / "fetched"
    shutil.copytree(FOLDER / "plain", folder)
    names = ["README.md", "unet/config.json", "unet/diffusion_pytorch_model.bin",
             "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"]
    files = {name: RepoSibling(name) for name in names}
    content = (folder / names[3]).read_bytes()
    files[names[3]].lfs = BlobLfsInfo(len(content), hashlib.sha256(content).hexdigest(), 1)

    def fetch(source, *, allow_patterns=None, **keywords):
        if keywords:
            return known(source, **keywords)
        assert (source, allow_patterns) == ("someone/plain", [names[1], names[4], names[3]])
        return str(folder)

    def info(self, source, files_metadata):
        assert files_metadata
        return huggingface_hub.ModelInfo(id=source, siblings=[
            {**vars(file), "lfs": file.lfs and {**file.lfs, "pointerSize": 1}}
            for file in files.values()
        ])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    return files[names[3]], folder / names[3]


def test_a_repository_is_fetched_without_what_is_not_needed(offline, plain, hub):
    same(ddpm_jax.from_pretrained("someone/plain"), plain)


def test_a_file_of_the_hub_with_another_checksum_is_refused_and_removed(offline, hub):
    record, fetched = hub
    record.lfs.update(sha256="0" * 64)
    refused("someone/plain", "safetensors arrived with another SHA-256 than 0000")
    assert not fetched.exists()


def test_the_hub_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("someone/plain", "needs huggingface_hub; install it with: pip install")
