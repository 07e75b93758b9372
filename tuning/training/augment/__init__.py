"""Batched augmentation: the whole batch at once, on its device, every film with its own draw.

An augmented film is a film: uint8 in, uint8 out, and the same preprocessing follows.

    settings.py  how far and how often: what a person or a search chooses
    draws.py     one draw for each film, all of it before the first pixel changes
    batch.py     applies the draws to a batch, one operation after the other
    geometry.py  position: affine, elastic, mirrored, all in one sampling
    exposure.py  grey levels: gamma, contrast, brightness, blur, noise, a square cut out
    coding.py    what viewers and archives do to a film: lower resolution, JPEG
"""
