"""What Rookery promises of its durability, a file for each requirement, and the proof that each test can fail.

A file names in `REMOVALS` the protections that it tests. `python -m tests.requirements.without` takes each out of a
copy of the source and expects the tests to fail there.
"""
