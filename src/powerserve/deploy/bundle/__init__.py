"""Bundles: everything that PowerServe needs on a device, in one archive built here."""

from powerserve.deploy.bundle.build import BundleOptions, build_bundle
from powerserve.deploy.bundle.target import DEFAULT_TARGET, TARGETS, Target, find_target

__all__ = [
    "DEFAULT_TARGET",
    "TARGETS",
    "BundleOptions",
    "Target",
    "build_bundle",
    "find_target",
]
