"""All domains by name. Adding one is a file and a line here."""

from __future__ import annotations

from rookery_shared.domains.base import Domain
from rookery_shared.domains.few_shot import FewShot
from rookery_shared.domains.knowledge import Knowledge
from rookery_shared.errors import InvalidField

DEFAULT_DOMAIN = Knowledge.name
_DOMAINS: dict[str, Domain] = {Knowledge.name: Knowledge(), FewShot.name: FewShot()}


def domain_names() -> list[str]:
    return list(_DOMAINS)


def find_domain(name: str) -> Domain:
    """Raises InvalidField for a name that is none."""
    try:
        return _DOMAINS[name]
    except KeyError:
        known = ", ".join(_DOMAINS)
        raise InvalidField(f"unknown domain {name!r}; known: {known}", field="domain") from None


def check_style(domain: str, style: str, *, field: str) -> None:
    """Raises InvalidField for a style that the domain does not have."""
    styles = find_domain(domain).styles
    if style not in styles:
        raise InvalidField(f"unknown style {style!r}; {domain} has {', '.join(styles)}", field=field)
