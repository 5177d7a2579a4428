"""The reference backend: numpy in float32, slow, obviously right; what tests compare with."""

from powerserve.backend.reference.backend import ReferenceBackend

__all__ = ["ReferenceBackend"]
