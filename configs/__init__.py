"""The configs of the package: `cifar10` lists every setting, the others are changes to it."""

import difflib
from typing import Any

import ml_collections

from ddpm_jax import errors

# What a setting may be, by the type of its value in `cifar10`.
KINDS = {
    bool: "True or False", int: "a whole number", float: "a number", str: "a string",
    tuple: "a tuple",
}


class Config(ml_collections.ConfigDict):
    """Settings of which those that are whole numbers take a float too, if it is whole: 1e3."""

    def __setitem__(self, key: str, value: Any) -> None:
        """Sets one setting; `self.key = value` comes here too."""
        kind = self.get_type(key) if key in self else None
        if kind is int and isinstance(value, float) and value.is_integer():
            value = errors.whole_number(key, value)
        if kind is Config and type(value) is ml_collections.ConfigDict:
            value = Config(value)
        super().__setitem__(key, value)


def nearest(name: str) -> str:
    """The setting that was likely meant by one that does not exist.

    Args:
        name: for example "train.bach_size", or "bach_size" where its group is not known.
    """
    from ddpm_jax.configs import cifar10

    groups = cifar10.get_config().items()
    names = [f"{group}.{key}" for group, keys in groups if isinstance(keys, Config) for key in keys]
    last = name.rpartition(".")[2]
    alike = difflib.get_close_matches(last, {each.partition(".")[2] for each in names}, 1)
    near = (
        difflib.get_close_matches(name, ["seed", *names], 1)
        or [each for each in names if each.endswith(f".{last}")]
        or [each for each in names if alike and each.endswith(f".{alike[0]}")]
    )
    return near[0] if near else "train.num_steps"
