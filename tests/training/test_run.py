"""What a run is made of, before it starts."""

from ddpm_jax.configs import digits
from ddpm_jax.training import run as run_lib
from data_sets import refused, write_pictures


def test_more_classes_than_the_config(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
        write_pictures(tmp_path / name, 2)
    config = digits.get_config()
    config.data.name, config.data.dir = "image_folder", str(tmp_path)
    config.data.labels, config.data.num_classes = True, 2
    config.train.batch_size = 8
    refused(lambda: run_lib.prepare(config, None, None),
            "num_classes=2, but image_folder has 3; write --config.data.num_classes=3")
