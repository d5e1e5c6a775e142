"""The card of a model, and that it holds no paths."""

import dataclasses

import jax
import pytest
import yaml

from ddpm_jax.configs import cifar10
from ddpm_jax.diffusion import process, schedule
from ddpm_jax.network.trained import About, Trained
from ddpm_jax.network.unet import UNet
from ddpm_jax.sharing import card


def trained(config=None, class_names=(), **fields):
    model = UNet(channels=8, channel_multipliers=(1,), num_res_blocks=1, out_channels=3, **fields)
    params = {"conv": {"kernel": jax.numpy.ones((20, 50))}}
    return Trained(params, model, schedule.linear(50), process.Parameterization(), (8, 16, 3),
                   about=About(config, 1500, class_names))


def head(text):
    start, meta, _ = text.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(meta)


def data_named(name, folder=""):
    config = cifar10.get_config()
    config.data.name, config.data.dir = name, folder
    return config


@pytest.mark.parametrize("name, licence, words", [
    ("digits", "cc-by-4.0", "CC BY 4.0"), ("fashion_mnist", "mit", "Zalando Research, MIT"),
    ("fashion_mnist:3.0.1", "mit", "Zalando Research, MIT"),
    ("cifar10", "unknown", "no licence is stated"), ("mnist", "cc-by-sa-3.0", "CC BY-SA 3.0"),
    ("image_folder", "unknown", "`image_folder`, `faces`, whose licence is unknown"),
])
def test_the_licence_is_that_of_the_data(name, licence, words):
    text = card.text(trained(data_named(name, "/home/alice/faces/")), "alice/x", caption="")
    assert head(text) == {
        "license": licence, "library_name": "diffusers",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["ddpm", "diffusion", "jax", "flax", "ddpm_jax"],
    }
    assert words in text and "/home" not in text and "![Samples](samples.png)" in text


def test_a_licence_of_your_own_comes_first():
    text = card.text(trained(data_named("digits")), "alice/x", license="openrail")
    assert head(text)["license"] == "openrail" and "samples.png" not in text


def test_without_a_config_the_data_are_not_recorded():
    text = card.text(trained(), "alice/x")
    assert head(text)["license"] == "unknown" and "Data: not recorded." in text
    assert "config.json" not in text and "Figures" not in text


def test_the_numbers_of_a_model():
    text = card.text(trained(data_named("cifar10")), "alice/small", caption="Sixteen.")
    assert "# small\n" in text and "images of 8x16 pixels and 3 channels" in text
    assert "Network: 1,000 parameters in float32; predicts eps; 50 noising steps." in text
    assert "Training: 1,500 steps of 128 images" in text and "\n\nSixteen.\n\n" in text


def code(text):
    return text.split("```python\n")[1:]


def test_a_plain_model_is_sampled_by_a_pipeline():
    ours, theirs = code(card.text(trained(), "alice/x"))
    assert 'ddpm_jax.from_pretrained("alice/x")' in ours and "condition" not in ours
    assert 'DDPMPipeline.from_pretrained("alice/x")(batch_size=16).images' in theirs


def test_classes_are_listed_and_passed_to_the_network():
    names = ("T-shirt/top", "Trouser")
    text = card.text(trained(num_classes=2, class_names=names), "alice/x")
    assert "Classes: 2 (0 T-shirt/top, 1 Trouser)." in text
    theirs = code(text)[1]
    assert "labels = torch.arange(16) % 2" in theirs and "class_labels=labels" in theirs
    assert "torch.randn(16, 3, 8, 16)" in theirs and "DDPMPipeline" not in theirs


def test_a_condition_is_asked_for():
    text = card.text(trained(condition_channels=2), "alice/x")
    ours, theirs = code(text)
    assert "condition=condition)  # [16, 8, 16, 2] in [-1, 1]" in ours
    assert "unet(torch.cat([x, condition], dim=1), t)" in theirs
    assert head(text)["pipeline_tag"] == "image-to-image"


@pytest.mark.parametrize("number", range(2))
def test_its_code_is_python(number):
    for model in (trained(), trained(num_classes=2), trained(condition_channels=1),
                  trained(num_classes=2, condition_channels=1)):
        compile(code(card.text(model, "alice/x"))[number].split("```")[0], "card", "exec")


def test_figures_hold_no_paths():
    row = {"step": 5, "metric": "fid", "reference": "/home/alice/real.npz", "value": 1.5,
           "remarks": ["/home/alice"],
           "protocol": {"reference": "gs://b/real.npz", "weights": "ema"}}
    text = card.text(trained(), "alice/x", rows=[row])
    assert "| fid/real.npz | 1.5000 | reference real.npz, weights ema |" in text
    assert "/home" not in text and "gs://" not in text


def test_a_model_of_another_type_has_a_card_too():
    model = trained()
    assert "bfloat16" in card.text(model.replace(
        model=dataclasses.replace(model.model, dtype=jax.numpy.bfloat16)), "alice/x")
