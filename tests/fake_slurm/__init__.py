"""A machine room without machines: SLURM's programs on PATH, whose jobs do what the test says."""

from tests.fake_slurm.control import FakeSlurm

__all__ = ["FakeSlurm"]
