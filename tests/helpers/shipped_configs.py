"""The configs that come with the package, and the parameters of their networks."""

import importlib

PARAMETERS = {
    "cifar10": 35_746_307, "celebahq256": 113_673_219, "lsun_bedroom256": 113_673_219,
    "lsun_cat256": 113_673_219, "lsun_church256": 113_673_219, "digits": 701_345,
    "fashion_mnist": 25_833_985, "image_folder": 78_700_803, "improved_cifar10": 52_546_438,
    "cifar10_conditional": 35_746_307 + 11 * 512, "digits_conditional": 701_345 + 11 * 128,
    "digits_superres": 701_345 + 9 * 32, "digits_segment": 701_345 + 9 * 32,
    "digits_vectors": 701_345 + 12 * 128,
}
NAMES = sorted(PARAMETERS)


def get_config(name):
    return importlib.import_module(f"ddpm_jax.configs.{name}").get_config()
