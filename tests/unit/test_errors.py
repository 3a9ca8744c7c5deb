"""Errors: one root, each with a code and a reason, the same on both sides of the wire."""

from __future__ import annotations

import pickle

import grpc
import pytest

from rookery.errors import BadFile, CallFailed, RookeryError
from rookery_shared import errors


def all_errors() -> list[type[RookeryError]]:
    found = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RookeryError)]
    return [kind for kind in found if kind is not RookeryError]


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_knows_its_code_and_reason_and_says_when_it_happens(kind: type[RookeryError]) -> None:
    assert isinstance(kind.code, grpc.StatusCode)
    assert kind.code not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)
    assert kind.reason.isupper()
    assert kind.__doc__


def test_reasons_are_unique() -> None:
    reasons = [kind.reason for kind in all_errors()]
    assert len(set(reasons)) == len(reasons)


def test_errors_survive_pickling() -> None:
    for error in (BadFile("no", file="f", line="3"), CallFailed("x", code=grpc.StatusCode.ABORTED, reason="R", a="b")):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), copy.message, copy.code, copy.reason, copy.metadata) == (
            type(error),
            error.message,
            error.code,
            error.reason,
            error.metadata,
        )


def test_a_status_carries_the_reason_and_metadata() -> None:
    status = BadFile("line 3 is bad", line="3").to_status()
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert status.details[0].type_url.endswith("google.rpc.ErrorInfo")
