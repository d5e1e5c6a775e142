"""Nothing executes what it loads: no call in the sources could, and no hostile file does."""

import ast
import functools
import json
import os
import pathlib
import pickle
import stat
import sys
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from PIL import EpsImagePlugin, Image

import ddpm_jax
from ddpm_jax.configs import digits
from ddpm_jax.data import decoding, loading
from ddpm_jax.evaluation import references
from ddpm_jax.weights import torch_file
from ddpm_jax.workdir import run_folder
from ddpm_jax.workdir.checkpoints import Checkpoints, restore_part
from data_sets import everything, numbered, ramp, write_pictures, write_tfds

ROOT = pathlib.Path(__file__).parents[2]
SOURCES = [path for pattern in ("main.py", "ddpm_jax/**/*.py", "configs/*.py")
           for path in sorted(ROOT.glob(pattern))]
# What runs, unpacks or fetches: builtins, then the ends of names, with the files that may.
BUILTINS = {"eval", "exec", "compile", "__import__"}
GUARDED = {
    "exec_module": ("config_file.py",), "import_module": ("__init__.py",),
    "spec_from_file_location": (), "SourceFileLoader": ("config_file.py",),
    "pickle.load": (), "pickle.Unpickler": ("weights/torch_file.py",),
    "pickle.loads": ("runtime/parallel.py",),  # From the first process of the same job.
    "extract": (), "extractall": (), "unpack_archive": (),
    "os.system": (), "os.popen": (), "os.startfile": (), "fromfile": (),
    "os.execv": (), "os.execve": ("runtime/huge_pages.py",), "os.posix_spawn": (),
    "urlopen": ("weights/inception_weights.py",), "urlretrieve": (), "hf_hub_download": (),
    "snapshot_download": ("weights/hub.py",), "Image.open": ("data/decoding.py",),
}
FORBIDDEN = {"cloudpickle", "dill", "joblib", "marshal", "requests", "shelve", "subprocess",
             "tarfile", "torch", "yaml", "multiprocessing"}
WHOLE = {"pickle", "os", "urllib.request"}  # Imported as they are, so that names tell.


def dotted(node):
    """"a.b.c" of an expression; of a call or an index within only what follows it."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def source(path):
    """A file by its place in the package."""
    return path.as_posix().removeprefix(f"{ROOT.as_posix()}/").removeprefix("ddpm_jax/")


def breaches(path):
    """What a file names that it should not, and its reads of NumPy files that allow a pickle."""
    breaches = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Attribute, ast.Name)):
            name = dotted(node)
            if name in BUILTINS or any(
                f".{name}".endswith(f".{guarded}") and source(path) not in files
                for guarded, files in GUARDED.items()
            ):
                breaches.append(name)
        elif isinstance(node, ast.Call) and dotted(node.func) in ("np.load", "numpy.load"):
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            if getattr(keywords.get("allow_pickle"), "value", None) is not False:
                breaches.append("np.load without allow_pickle=False")
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            breaches += [name for name in names if name.split(".")[0] in FORBIDDEN]
        elif isinstance(node, ast.ImportFrom):
            if node.module in WHOLE or node.module.split(".")[0] in FORBIDDEN:
                breaches.append(f"from {node.module} import")
    return breaches


@pytest.mark.parametrize("path", SOURCES, ids=source)
def test_no_source_runs_what_it_loads(path):
    assert not breaches(path)


@pytest.mark.parametrize("text", [
    "eval(x)", "exec(x)", "f = exec", "import pickle\npickle.loads(x)", "np.load(p)",
    "np.load(p, allow_pickle=True)", "numpy.load(p) if 0 else np.load(p)", "import subprocess",
    "import torch", "from pickle import load", "os.system(x)", "archive.extractall()",
    "archive.extract(n)", "urllib.request.urlopen(u)", "Image.open(p)", "import yaml",
    "class U(pickle.Unpickler): pass", "from urllib.request import urlopen", "import tarfile",
    "spec.loader.exec_module(m)", "importlib.import_module(x)", "from os import system",
])
def test_the_check_of_the_sources_finds(tmp_path, text):
    (tmp_path / "x.py").write_text(text)
    assert breaches(tmp_path / "x.py")


# What the interpreter itself reports while files are loaded.

RUNNING = {"pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn",
           "os.fork", "socket.connect", "urllib.Request", "shutil.unpack_archive"}
_events, _watching = [], []


@functools.cache
def hook_once():
    """Hooks cannot be removed: this one stays, idle."""
    def hook(event, arguments):
        if _watching and event in RUNNING:
            _events.append((event, str(arguments)[:200]))

    sys.addaudithook(hook)


@pytest.fixture
def watched():
    """The events by which something would run."""
    hook_once()
    _events.clear()
    _watching.append(True)
    yield _events
    _watching.clear()


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_the_watch_sees_a_pickle(watched, tmp_path):
    pickle.loads(pickle.dumps(Attack(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()
    assert [event for event, _ in watched] == ["pickle.find_class"]


def test_loading_runs_nothing(tmp_path, watched):
    """Checkpoints, configs, arrays, pictures, data sets and weights."""
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(3, {"params": {"a": np.ones(2)}}, {"config": "{}"})
    assert restore_part(tmp_path / "run", "params", None)[0] == 3
    run_folder.parse(run_folder.dump(digits.get_config()))
    np.savez(tmp_path / "x.npz", train=numbered(3))
    loading.load("npz", data_dir=str(tmp_path / "x.npz"))
    loading.load("digits")
    np.savez(tmp_path / "s.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    references.load(tmp_path / "s.npz")
    (tmp_path / "pictures").mkdir()
    everything(loading.load("image_folder", data_dir=write_pictures(tmp_path / "pictures", 3)))
    everything(loading.load("tiny", data_dir=write_tfds(tmp_path, ramp(3))))
    fixtures = pathlib.Path(__file__).parents[1] / "fixtures"
    for name in ("tensors.pth", "tensors_legacy.pth"):
        torch_file.read(fixtures / name)
    assert watched == []


@pytest.mark.parametrize("name", ["a.bin", "a.pth", "a.ckpt", "a.safetensors"])
def test_weights_that_are_a_pickle(tmp_path, watched, name):
    marker = tmp_path / "marker"
    (tmp_path / name).write_bytes(pickle.dumps({"conv_in.weight": Attack(marker)}))
    with pytest.raises(ValueError, match=name) as error:
        ddpm_jax.from_state_dict(tmp_path / name)
    assert "\n" not in str(error.value)
    assert not marker.exists() and watched == []


def test_statistics_that_are_a_pickle(tmp_path, watched):
    marker = tmp_path / "marker"
    np.savez(tmp_path / "a.npz", mu=np.array([Attack(marker)]), sigma=np.eye(1))
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Attack(marker)))
    for name in ("a.npz", "b.npz"):
        with pytest.raises(ValueError, match=name):
            references.load(tmp_path / name)
    assert not marker.exists() and watched == []


def test_names_in_an_archive_cannot_leave_it(tmp_path, watched):
    """Nothing is unpacked: entries are read by name, in memory."""
    outside = tmp_path / "outside.npy"
    inside = tmp_path / "set"
    inside.mkdir()
    np.save(outside, numbered(3))
    content = outside.read_bytes()
    outside.unlink()
    with zipfile.ZipFile(inside / "x.npz", "w") as archive:
        archive.writestr("train.npy", content)
        archive.writestr("../outside.npy", content)
        archive.writestr(str(outside), content)
    assert len(loading.load("npz", data_dir=str(inside / "x.npz"))) == 3
    assert os.listdir(tmp_path) == ["set"] and os.listdir(inside) == ["x.npz"]


@pytest.mark.parametrize("source", ["../secret", "a/../../b", "/etc/x/y", "a/b/c", "a/..", "x"])
def test_repositories_are_no_paths(source):
    with pytest.raises(ValueError, match="is no folder, and no repository of the hub"):
        ddpm_jax.from_pretrained(source)


def ghostscript(tmp_path, monkeypatch):
    """A program that Pillow takes for Ghostscript, which leaves a mark."""
    marker, program = tmp_path / "ran", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", str(program))
    return marker


def test_postscript_is_not_handed_to_ghostscript(tmp_path, monkeypatch):
    folder = tmp_path / "pictures"
    folder.mkdir()
    marker, path = ghostscript(tmp_path, monkeypatch), folder / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\nshowpage\n")
    with Image.open(path) as image, pytest.raises(Exception):  # noqa: B017
        image.load()
    assert marker.exists()  # So Pillow would.
    marker.unlink()
    with pytest.raises(ValueError, match="a.png"):
        loading.load("image_folder", data_dir=str(folder))
    with pytest.raises(ValueError, match="a.png"):
        decoding.read(path, (0, 0, 3), setting="config.sample.inputs")
    path.rename(folder / "a.eps")
    with pytest.raises(ValueError, match="no pictures there"):
        loading.load("image_folder", data_dir=str(folder))
    assert not marker.exists()


@pytest.mark.parametrize("where", ["class", "nested", "legacy"])
def test_a_data_set_does_not_choose_what_is_imported(tmp_path, monkeypatch, where):
    import tensorflow_datasets as tfds

    marker = tmp_path / "marker"
    (tmp_path / "evil_feature.py").write_text(f"import os; os.mkdir({str(marker)!r})")
    monkeypatch.syspath_prepend(tmp_path)
    root = write_tfds(tmp_path, ramp(3))
    path = tmp_path / "tiny" / "1.0.0" / "features.json"
    text = path.read_text()
    if where == "class":
        text = text.replace("tensorflow_datasets.core.features.image_feature.Image",
                            "evil_feature.Image")
    elif where == "nested":
        text = json.dumps({
            "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
            "jsonFeature": {"json": json.dumps({"a": {"type": "evil_feature.X", "content": {}}})},
        })
    else:
        text = json.dumps({"type": "evil_feature.X", "content": {}})
    path.write_text(text)
    if where != "nested":
        with pytest.raises(Exception):  # noqa: B017
            tfds.builder_from_directory(path.parent)
        assert marker.exists()  # So TFDS would.
        marker.rmdir()
        del sys.modules["evil_feature"]
    with pytest.raises(ValueError, match="names evil_feature.*, which is not TFDS's own"):
        loading.load("tiny", data_dir=root)
    assert not marker.exists() and "evil_feature" not in sys.modules


def test_damaged_safetensors_are_one_line(tmp_path):
    whole = safetensors.numpy.save({"a": np.ones((3, 2), np.float32)})
    path, random, refused = tmp_path / "a.safetensors", np.random.default_rng(0), 0
    broken = [b"", whole[:5], whole[:-1], b"\xff" * 8 + whole[8:], whole.replace(b"F32", b"F99")]
    for _ in range(200):
        flipped = bytearray(whole)
        flipped[random.integers(len(whole))] = random.integers(256)
        broken.append(bytes(flipped))
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(ValueError) as error:  # What reads is not of the network, either.
            ddpm_jax.from_state_dict(path)
        assert "\n" not in str(error.value)
        refused += "is damaged" in str(error.value)
    assert refused > 50


def test_nested_settings_of_others_are_one_line(tmp_path):
    for name in ("config.json", "scheduler_config.json"):
        (tmp_path / name).write_text("[" * 100_000)
    (tmp_path / "diffusion_pytorch_model.bin").touch()
    with pytest.raises(ValueError, match="cannot be read as JSON") as error:
        ddpm_jax.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)
