"""Training one model: the loop, its settings, augmentation, and heads on frozen features."""
