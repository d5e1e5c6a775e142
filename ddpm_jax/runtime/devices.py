"""Whether JAX has the devices that it was asked for."""

import importlib.metadata

import jax

from ddpm_jax.errors import UserError, one_line

_EXTRAS = {"cuda": "cuda13", "gpu": "cuda13", "tpu": "tpu"}


def check() -> None:
    """Starts JAX's devices.

    Raises:
        UserError: there are none of the kind that JAX_PLATFORMS asks for.
    """
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:  # The first where a plugin is missing.
        asked = jax.config.jax_platforms
        if not asked:
            raise
        raise UserError(f"JAX_PLATFORMS={asked}: {_found(error)}; {_remedy(asked)}") from error


def _found(error) -> str:
    """What there is, and why JAX says that this is not enough."""
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    names = ", ".join(["cpu", *sorted({plugin.name for plugin in plugins})])
    why = f" ({one_line(error).partition(' (set ')[0][:200]})" if str(error) else ""
    return f"JAX finds no such device here{why}, and is installed for {names}"


def _remedy(asked: str) -> str:
    name = asked.partition(",")[0].lower()
    if name in _EXTRAS:
        return (
            f'install JAX for it, pip install -U "jax[{_EXTRAS[name]}]", or unset JAX_PLATFORMS to '
            "use what there is."
        )
    return (
        "write cpu, cuda or tpu, or unset JAX_PLATFORMS to use what there is; other devices: "
        "https://docs.jax.dev/en/latest/installation.html."
    )
