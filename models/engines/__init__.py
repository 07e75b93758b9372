"""What runs a model, on CPU and GPU, and how the fastest one that is right is chosen."""
