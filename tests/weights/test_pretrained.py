"""Models of diffusers: its files give its outputs and chains, and ours become such files."""

import json
import pathlib
import pickle
import runpy
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from numpy.testing import assert_allclose, assert_array_equal

import ddpm_jax
from ddpm_jax.samplers.settings import Settings
from ddpm_jax.weights import state_dicts
from diffusers_models import FOLDER, HINT, refused, same

SCRIPT = runpy.run_path(str(FOLDER.with_name("make_diffusers.py")))
with np.load(FOLDER / "outputs.npz") as stored:
    OUTPUTS = dict(stored)


def outputs(trained, name, **model_kwargs):
    x, t = SCRIPT["draws"](name)[0], jnp.array(SCRIPT["T"])
    run = jax.jit(lambda params: trained.model.apply(
        {"params": params}, x, t, train=False, **model_kwargs))
    return run(trained.params)


def test_the_outputs_are_those_of_diffusers(plain, conditional):
    # float32 sums in another order, through some forty layers.
    assert_allclose(outputs(plain, "plain"), OUTPUTS["plain"], rtol=0, atol=1e-4)
    labels = jnp.array(SCRIPT["LABELS"])
    found = outputs(conditional, "conditional", labels=labels)
    assert_allclose(found, OUTPUTS["conditional"], rtol=0, atol=1e-4)
    assert all(np.abs(OUTPUTS[name]).std() > 0.1 for name in ("plain", "conditional"))


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
    weights.write_bytes(whole)
    (folder / "scheduler" / "scheduler_config.json").unlink()
    refused(folder, "has no scheduler/scheduler_config.json")
    (folder / "scheduler_config.json").write_text("{}")
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
