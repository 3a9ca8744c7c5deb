"""Domains: kinds of context, one file each. `find_domain` is the only way in."""

from rookery_shared.domains.base import Ask, Domain
from rookery_shared.domains.registry import DEFAULT_DOMAIN, check_style, domain_names, find_domain

__all__ = ["DEFAULT_DOMAIN", "Ask", "Domain", "check_style", "domain_names", "find_domain"]
