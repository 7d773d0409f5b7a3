"""The adapter to NVIDIA FLARE: frames over its cell network, and programs as its jobs.

Everything that knows the engine stands in this folder and in :mod:`medveil.connect`. Importing this package needs no
engine; its modules do.
"""

from medveil.federation.engine.context import Ending, JobContext, Submitter

__all__ = ["Ending", "JobContext", "Submitter"]
