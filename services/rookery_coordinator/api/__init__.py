"""Servicers: they translate between messages and the domain modules, and decide nothing."""
