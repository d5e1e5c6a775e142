"""The stand-in of the hub."""

from hub_server import hub  # noqa: F401
