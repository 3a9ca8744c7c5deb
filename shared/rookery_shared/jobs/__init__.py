"""Queues and workers. A message is a wake-up; the coordinator's row is the authority."""
