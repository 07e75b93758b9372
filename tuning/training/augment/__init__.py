"""Batched augmentation, on the batch's own device."""
