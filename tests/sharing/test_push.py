"""Models on the hub: what is committed there, what of this machine is not, and what is refused."""

import io
import json
import shutil
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import ddpm_jax
from ddpm_jax import config as config_lib
from ddpm_jax.configs import digits
from ddpm_jax.data import loading
from ddpm_jax.evaluation import identity
from ddpm_jax.runtime import files
from ddpm_jax.workdir import checkpoints, run_folder
from diffusers_models import FOLDER, same
from nonzero import nonzero_params
from saved_state import METADATA

# Of huggingface_hub's client, which uploads as httpx no longer likes.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

FILES = {
    "README.md", "samples.png", "model_index.json", "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json",
}
IMAGES = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
HOME = "/home/alice"


@pytest.fixture(scope="module")
def plain():
    return ddpm_jax.from_pretrained(FOLDER / "plain")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run whose settings are full of paths, and its evaluations."""
    config = digits.get_config()
    config.model.channels = 16
    config.model.num_groups = 4
    config.model.channel_multipliers = (1,)
    config.model.attention_resolutions = ()
    config.diffusion.num_timesteps, config.diffusion.beta_end = 6, 0.9
    config.sample.folder = config.evaluate.folder = f"{HOME}/results"
    config.sample.inputs = (f"{HOME}/me.png",)
    config.evaluate.references = ("train", "gs://bucket.of.alice/real")
    folder = files.path(tmp_path_factory.mktemp("runs")) / "host.of.alice" / "digits"
    folder.mkdir(parents=True)
    config = config_lib.resolved(config, loading.load("digits"))
    run_folder.store_config(config, folder)
    params = nonzero_params(config_lib.model(config, 1))
    with checkpoints.Checkpoints(folder) as saved:
        saved.save(1, {"ema_params": params, "params": jax.tree.map(np.negative, params)},
                   METADATA | {"config": run_folder.dump(config)})
    protocol = {"weights": "ema", "step": 1, "num_samples": 13, "reference": f"{HOME}/real",
                "checkpoint": identity.of_model(ddpm_jax.load(folder))}
    row = {"step": 1, "metric": "fid", "reference": f"{HOME}/real", "value": 12.345, "remarks": [],
           "protocol": protocol}
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (
        row, row | {"metric": "kid", "protocol": protocol | {"checkpoint": "sha256:0"}},
        row | {"metric": "sweep", "value": None})))
    return folder


def refused(message, *arguments, **settings):
    with pytest.raises(ValueError, match=message) as error:
        ddpm_jax.push_to_hub(*arguments, **settings)
    assert "\n" not in str(error.value)


def test_a_model_is_committed_and_read_again_to_the_bit(hub, plain):
    address = ddpm_jax.push_to_hub(plain, "alice/plain", images=IMAGES)
    assert address == f"{hub.address}/alice/plain"
    assert set(hub.repositories["alice/plain"]) == FILES and len(hub.messages) == 1
    assert hub.large_names == {"unet/diffusion_pytorch_model.safetensors"}
    assert not hub.private["alice/plain"]
    same(ddpm_jax.from_pretrained("alice/plain"), plain)
    ddpm_jax.push_to_hub(plain, "alice/plain", images=IMAGES)  # One that is there already.
    ddpm_jax.push_to_hub(plain, "alice/secret", images=IMAGES, private=True)
    assert hub.private["alice/secret"]


def test_a_run_goes_with_its_config_its_figures_and_a_picture(hub, workdir):
    ddpm_jax.push_to_hub(workdir, "alice/digits")
    stored = hub.repositories["alice/digits"]
    assert set(stored) == FILES | {"run/config.json"}
    same(ddpm_jax.from_pretrained("alice/digits"), ddpm_jax.load(workdir))
    config = json.loads(stored["run/config.json"])
    assert config["model"]["channels"] == 16 and config["sample"]["folder"] == "results"
    assert config["sample"]["inputs"] == ["me.png"]
    assert config["evaluate"]["references"] == ["train", "real"]
    card = stored["README.md"].decode()
    assert "| fid/real | 12.3450 | weights ema, num_samples 13, reference real |" in card
    assert "kid" not in card and "sweep" not in card  # Of other weights, and without a value.
    assert "16 samples of DDIM in 6 steps" in card and "CC BY 4.0" in card
    assert json.loads(stored["scheduler/scheduler_config.json"])["clip_sample"] is True
    picture = Image.open(io.BytesIO(stored["samples.png"]))
    assert picture.size == (4 * 64 + 5 * 2,) * 2 and picture.mode == "L"


def test_nothing_tells_of_this_machine(hub, workdir):
    ddpm_jax.push_to_hub(workdir, "alice/digits", images=IMAGES)
    words = [HOME, "bucket", "of.alice", str(workdir.parent)]
    sent = {**hub.repositories["alice/digits"], "message": hub.messages[0].encode()}
    assert (workdir / "config.json").read_text().count(HOME) > 2
    for name, content in sent.items():
        for word in words:
            assert word.encode() not in content, (name, word)


def test_names_without_an_owner_are_refused_before_anything_is_sent(hub, plain):
    for name, instead in (("digits", "YOU/digits"), ("a/b/c", "YOU/c"), ("/x", "YOU/x")):
        refused(f"name='{name}' is no name .* write name='{instead}'", plain, name)
    refused("name=7 is no name", plain, 7)
    refused("name='alice/a--b' is refused by the hub", plain, "alice/a--b")
    assert not hub.requests


def test_what_is_no_run_or_not_of_diffusers_is_refused_before_anything_is_sent(
    hub, plain, workdir, tmp_path
):
    refused(f"workdir={tmp_path} holds neither config.json nor a checkpoint", tmp_path, "alice/x")
    refused("model of diffusers, not a run", FOLDER / "plain", "alice/x")
    scaled = plain.replace(model=plain.model.clone(timestep_scale=2.0))
    refused("model.timestep_scale=2.0 cannot be expressed in diffusers", scaled, "alice/x")
    refused("no checkpoint of step 7", workdir, "alice/x", step=7)
    refused("weights='raw' is for a workdir", plain, "alice/x", weights="raw")
    refused("a grid needs uint8", plain, "alice/x", images=np.zeros((1, 8, 8, 3)))
    assert not hub.requests


def test_the_hub_refuses_in_one_line(hub, plain, monkeypatch):
    refused("bob/x was not pushed: your token may not write to it; .* name='YOU/x'",
            plain, "bob/x", images=IMAGES)
    hub.repositories["bob/public"] = {}
    refused("bob/public was not pushed: your token may not write", plain, "bob/public",
            images=IMAGES)
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    refused("alice/x was not pushed: the hub knows no token of yours; run hf auth login",
            plain, "alice/x", images=IMAGES)
    monkeypatch.delenv("HF_TOKEN")
    refused("alice/x was not pushed: the hub knows no token", plain, "alice/x", images=IMAGES)
    assert hub.repositories == {"bob/public": {}} and not hub.large and not hub.messages


def test_an_upload_that_fails_commits_nothing_and_says_why(hub, plain):
    hub.breaks = True
    refused("alice/x was not pushed .*507.*; nothing was committed: try again", plain, "alice/x",
            images=IMAGES)
    assert hub.repositories == {"alice/x": {}}
    hub.breaks = False
    ddpm_jax.push_to_hub(plain, "alice/x", images=IMAGES)
    assert set(hub.repositories["alice/x"]) == FILES


def test_a_hub_out_of_reach_is_one_line(hub, plain, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused("alice/x was not pushed .Connect.*; nothing was committed: try again", plain,
            "alice/x", images=IMAGES)


def test_the_hub_is_an_extra(plain, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("push_to_hub needs huggingface_hub; install it with: pip install .ddpm_jax.hub",
            plain, "alice/x")


def test_a_checkpoint_of_a_run_is_named_by_its_step(hub, workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    ddpm_jax.push_to_hub(tmp_path / "run", "alice/raw", step=1, weights="raw", images=IMAGES,
                         license="mit")
    same(ddpm_jax.from_pretrained("alice/raw"), ddpm_jax.load(workdir, weights="raw"))
    card = hub.repositories["alice/raw"]["README.md"].decode()
    assert "license: mit\n" in card and "Figures" not in card  # Those are of the average.
