"""Rookery's Python client.

    from rookery import Client

    with Client("localhost:7070") as rookery:
        adaptation = rookery.create_adaptation(teacher=..., student=..., title=..., passage=...)

Everything here needs the base install only: neither torch nor Celery.
"""

from rookery.aio import AsyncClient
from rookery.client import Client, Recipe, Sampling
from rookery.datasets import load_dataset
from rookery.errors import BadFile, CallFailed, RookeryError
from rookery.v1.context_pb2 import Context, Question

__all__ = [
    "AsyncClient",
    "BadFile",
    "CallFailed",
    "Client",
    "Context",
    "Question",
    "Recipe",
    "RookeryError",
    "Sampling",
    "load_dataset",
]
