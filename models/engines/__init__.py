"""What runs a model on CPUs and GPUs, and how the fastest engine that agrees with the reference is chosen."""
