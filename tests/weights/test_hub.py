"""Repositories of the hub: read from its cache, fetched without what is not needed, and checked."""

import hashlib
import shutil
import sys

import pytest

import ddpm_jax
from diffusers_models import FOLDER, refused, same
from wrapped_models import FOLDER as WRAPPED
from wrapped_models import assert_is


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


def test_shards_are_fetched_after_their_index(offline, tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.hf_api import RepoSibling

    shards, fetched, asked = WRAPPED / "shards", tmp_path / "fetched", []
    fetched.mkdir()
    names = sorted(path.name for path in shards.iterdir())
    index = "diffusion_pytorch_model.safetensors.index.json"
    known = huggingface_hub.snapshot_download

    def fetch(source, *, allow_patterns=None, **keywords):
        if keywords:
            return known(source, **keywords)
        asked.append(allow_patterns)
        for name in allow_patterns:
            shutil.copy(shards / name, fetched)
        return str(fetched)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: (
        huggingface_hub.ModelInfo(id="a/b", siblings=[
            vars(RepoSibling(name)) for name in [*names, "x.msgpack"]])))
    assert_is(ddpm_jax.from_pretrained("someone/sharded", scheduler={}), "model")
    assert [sorted(patterns) for patterns in asked] == [["config.json", index], names]


def test_a_cached_repository_of_shards_without_a_scheduler(offline):
    repository = offline / "models--someone--sharded"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(WRAPPED / "shards", snapshot)
    assert_is(ddpm_jax.from_pretrained("someone/sharded", scheduler={}), "model")
    refused("someone/sharded", "could not be fetched")  # Its scheduler may be on the hub.
    next(snapshot.glob("*-00002-of-*")).unlink()
    with pytest.raises(ValueError, match="could not be fetched"):
        ddpm_jax.from_pretrained("someone/sharded", scheduler={})


def test_a_file_of_the_hub_with_another_checksum_is_refused_and_removed(offline, hub):
    record, fetched = hub
    record.lfs.update(sha256="0" * 64)
    refused("someone/plain", "safetensors arrived with another SHA-256 than 0000")
    assert not fetched.exists()


def test_the_hub_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("someone/plain", "needs huggingface_hub; install it with: pip install")
