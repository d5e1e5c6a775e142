"""Finds the weights of a network among everything that a checkpoint holds.

Programs wrap a state dict in many ways: below a key, beside an optimizer and a running average,
and with the names of PyTorch's own wrappers (torch.compile, DataParallel, EMA classes) before the
network's. The names that only a U-Net has, `state_dicts.KNOWN_BY`, show where it begins.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ddpm_jax.errors import UserError, shown
from ddpm_jax.weights.state_dicts import KNOWN_BY

MOST_VALUES = 1_000_000  # In a file: a pickle of a few bytes may name one part again and again.
# Names that wrappers of PyTorch put anywhere, also between those of the network.
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
AVERAGES = {"ema", "swa", "avg", "average", "averaged", "shadow"}  # Words of a name.
ONLINE = {"online"}  # The model itself, inside an average's class.
STATES = {"optimizer", "optimizers", "optim", "opt", "grad", "grads"}
# The list that DDIM's program saves.
DDIM_LIST = {"0": "model", "1": "optimizer", "2": "epoch", "3": "step", "4": "ema"}


class Found(NamedTuple):
    """The weights of one network.

    Attributes:
        weights: by the network's own names, without what wraps them.
        note: a line about the choice, where there was one; else "".
    """

    weights: dict[str, Any]
    note: str


def named(tree: Any) -> dict[str, Any]:
    """Every value below dicts and lists by its name: keys and indices, joined by dots.

    Raises:
        ValueError: two values have one name, or there are too many.
    """
    values = {}
    for name, value in _walk(tree, "", itertools.count()):
        if name in values:
            raise ValueError(f"two tensors are called {shown(name)}")
        values[name] = value
    return values


def _walk(tree, prefix, visits) -> Iterator[tuple[str, Any]]:
    if next(visits) > MOST_VALUES:
        raise ValueError(f"it has more than {MOST_VALUES:,} values")
    if isinstance(tree, dict):
        items = dict.items(tree)  # Whatever a pickle has set on the instance.
    elif isinstance(tree, Mapping):
        items = tree.items()
    elif isinstance(tree, (list, tuple)) and not hasattr(tree, "shape"):
        items = enumerate(tree)
    else:
        yield prefix.removesuffix("."), tree
        return
    for key, value in items:
        yield from _walk(value, f"{prefix}{key}.", visits)


def find(values: Mapping[str, Any], prefix: str | None = None) -> Found:
    """The weights of a network among values by name.

    Where there are both a model and its running average, it is the average. An average that is a
    list (`shadow_params` of diffusers and of score_sde), or whose names lack their dots, is told
    by the model beside it, which has the same order or names.

    Args:
        values: as from `named`; tensors have a `shape`.
        prefix: what stands before the weights to be taken, where there are several.

    Returns:
        Where no known network is found: all tensors, and whatever could not be read.

    Raises:
        UserError: there are several networks, or an average that cannot be told.
    """
    tensors = _tensors(values)
    networks = _networks(tensors)
    prefix = prefix if prefix is None else prefix.strip(".")
    if prefix not in networks and not any(map(_is_average, networks)):
        networks |= _nameless_averages(tensors, networks)
    if prefix is not None:
        networks = _below(networks, prefix)
    if not networks:
        return Found(tensors | {n: v for n, v in values.items() if hasattr(v, "named")}, "")
    models, averages = (
        {at: weights for at, weights in networks.items() if _is_average(at) == average}
        for average in (False, True)
    )
    at, weights = _only(averages or models)
    note = ""
    if averages and models:
        note = (
            f"holds a model and its running average: the average, {shown(at)}, is taken; for the "
            f"model itself write prefix={shown(next(iter(models)))}"
        )
    elif prefix is None and models:
        unknown = [
            name for name, value in values.items()
            if _is_average(name) and not any(map(_is_state, name.split(".")))
            and (hasattr(value, "named") or len(getattr(value, "shape", ())) > 0)
        ]
        if unknown:
            note = (
                f"holds a running average that cannot be read, {shown(unknown[0])}: the model "
                f"itself, {shown(at)}, is taken"
            )
    return Found(weights, note)


def _tensors(values) -> dict[str, Any]:
    """The tensors that may be weights, without the names of wrappers."""
    is_ddim = any(name.startswith("1.param_groups.") for name in values)
    tensors = {}
    for name, value in values.items():
        parts = [part for part in name.split(".") if part not in WRAPPERS]
        if is_ddim:
            parts[0] = DDIM_LIST.get(parts[0], parts[0])
        if not hasattr(value, "shape") or any(map(_is_state, parts)):
            continue
        clean = ".".join(parts)
        if clean in tensors:
            raise UserError(f"two weights are called {shown(clean)}; save those of one network.")
        tensors[clean] = value
    return tensors


def _networks(tensors) -> dict[str, dict[str, Any]]:
    """The weights of each network, by what stands before its names ("" or without the last dot)."""
    starts = sorted({
        name[:len(name) - len(known)] for name in tensors for known in KNOWN_BY
        if f".{name}".endswith(f".{known}")
    }, key=lambda start: (len(start), start))
    networks: dict[str, dict[str, Any]] = {start.removesuffix("."): {} for start in starts}
    for name, value in tensors.items():
        start = next((start for start in reversed(starts) if name.startswith(start)), None)
        if start is not None and not _is_average(name.removeprefix(start)):
            networks[start.removesuffix(".")][name.removeprefix(start)] = value
    return networks


def _below(networks, prefix):
    if prefix in networks:
        return {prefix: networks[prefix]}
    below = {at: weights for at, weights in networks.items() if at.startswith(f"{prefix}.")}
    if not below:
        raise UserError(
            f"has no weights there; it has those of {_listed(networks)}", field="prefix",
            value=prefix, instead={"prefix": next(iter(networks), "")},
        )
    return below


def _is_average(name: str) -> bool:
    """Whether the innermost part that tells says that it is a running average."""
    for part in reversed(name.split(".")):
        if _words(part) & (AVERAGES | ONLINE):
            return not _words(part) & ONLINE
    return False


def _is_state(part: str) -> bool:
    """Whether a part of a name says that what follows is an optimizer's."""
    return bool(_words(part) & STATES) or "exp_avg" in part


def _words(part: str) -> set[str]:
    """ "modelEMA_0.99" -> {"model", "ema"}."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", part)
    return {word.lower() for word in words}


def _nameless_averages(tensors, models) -> dict[str, dict[str, Any]]:
    """Averages whose tensors have other names than the model's, told by the model."""
    parents: dict[str, dict[str, Any]] = {}
    for name, value in tensors.items():
        parent, _, last = name.rpartition(".")
        if _is_average(parent):
            parents.setdefault(parent, {})[last] = value
    found = {}
    for parent, entries in parents.items():
        is_list = list(entries) == [str(i) for i in range(len(entries))]
        if is_list and _is_average(parent.rpartition(".")[2]):
            found[parent] = _by_order(parent, entries, models)
        for at, weights in models.items():
            for names in _without_dots(at, weights):
                if set(names) <= set(entries):
                    found[parent] = {names[name]: entries[name] for name in names}
    return found


def _by_order(parent, entries, models):
    """The entries of a list by the names of the model, if both have the same shapes in order."""
    for weights in models.values():
        shapes = [[tuple(x.shape) for x in tensors.values()] for tensors in (weights, entries)]
        if shapes[0] == shapes[1]:
            return dict(zip(weights, entries.values(), strict=True))
    if models:
        raise UserError(
            f"the running average {shown(parent)} is a list of {len(entries)} tensors without "
            "names, and the model beside it has others; for the model itself write {instead}.",
            instead={"prefix": next(iter(models))},
        )
    raise UserError(
        f"the running average {shown(parent)} is a list of {len(entries)} tensors without names; "
        "give the model's weights too, whose order it has: from_state_dict([MODEL, AVERAGE])."
    )


def _without_dots(at, weights):
    """The model's names as an average of latent diffusion has them, from any part of `at` on."""
    parts = at.split(".") if at else []
    for i in range(len(parts) + 1):
        before = "".join(parts[i:])
        yield {before + name.replace(".", ""): name for name in weights}


def _only(networks) -> tuple[str, dict[str, Any]]:
    """The one network, or any where all are the same tensors."""
    (at, weights), *others = networks.items()
    for _, other in others:
        if other.keys() != weights.keys() or not all(
            other[name] is x or (isinstance(x, tuple) and other[name] == x)
            for name, x in weights.items()
        ):
            raise UserError(
                f"holds the weights of several networks: {_listed(networks)}; choose one and "
                "write {instead}.", instead={"prefix": at},
            )
    return at, weights


def _listed(networks) -> str:
    names = [shown(at) for at in itertools.islice(networks, 4)]
    return ", ".join([*names, *(["..."] if len(networks) > 4 else [])]) or "no network"
