"""Other devices: bundles for them, and the way there."""
