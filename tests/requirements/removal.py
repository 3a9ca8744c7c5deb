"""A protection, and how to take it out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """An edit of one source file after which a test must fail."""

    what: str
    """The protection, in a few words."""
    file: str
    """From the root of the repository."""
    old: str
    """Text that occurs in the file once."""
    new: str
    test: str
    """The test that must fail: a function of the module, with its parameters in brackets if it has some."""
