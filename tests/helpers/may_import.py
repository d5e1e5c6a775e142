"""The rooms of `ddpm_jax/`, and what each may import besides itself and `errors`."""

_WORLD = {"config", "data", "diffusion", "network", "optimizer", "runtime", "samplers",
          "validation", "workdir"}
_WORK = _WORLD | {"inference", "weights"}
ROOMS = {
    "errors": set(),
    "config_file": set(),
    "arguments": {"workdir"},
    "diffusion": set(),
    "network": set(),
    "optimizer": set(),
    "runtime": set(),
    "samplers": {"diffusion"},
    "data": {"runtime"},
    "config": {"data", "diffusion", "network", "optimizer", "runtime", "samplers"},
    "validation": {"config", "config_file", "network"},
    "weights": {"diffusion", "network", "runtime"},
    "workdir": {"config", "data", "diffusion", "network", "runtime"},
    "inference": _WORLD,
    "training": _WORK,
    "evaluation": _WORK,
    "reporting": {"config", "config_file", "data", "evaluation", "runtime", "workdir"},
    "sharing": {"evaluation", "inference", "network", "reporting", "runtime", "weights",
                "workdir"},
    "planning": _WORK | {"evaluation", "training"},
    "lowering": _WORK | {"evaluation", "planning", "training"},
    "forecast": _WORK | {"evaluation", "lowering", "planning", "training"},
    "schedule": {"diffusion"},  # Names under which outsiders import them.
    "losses": {"diffusion"},
    "unet": {"network"},
}
