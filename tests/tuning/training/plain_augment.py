"""Augmentation of one film at a time, written plainly from the definitions: what the batched one must equal."""

import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.ndimage
import torch
from torch.nn import functional

from tuning.training.augment.batch import Draws
from tuning.training.augment.coding import LUMINANCE

Grey = npt.NDArray[np.float64]


def augment(film: npt.NDArray[np.uint8], draws: Draws, index: int) -> npt.NDArray[np.uint8]:
    """Film `index` of a batch, uint8 [H, W], by its own draws."""
    one = {name: value[index].numpy() for name, value in vars(draws).items() if name != "grain"}
    grey = move(film / 255, one)
    grey = np.clip(grey, 0, 1) ** 2.0 ** one["gamma"]
    grey = (grey - 0.5) * np.exp(one["contrast"]) + 0.5 + one["brightness"]
    if one["blur"] > 0:
        grey = scipy.ndimage.gaussian_filter(grey, one["blur"] * film.shape[1], mode="mirror", truncate=3)
    if one["noise"] > 0:
        place = int((draws.noise[:index] > 0).sum())
        grey = grey + one["noise"] * draws.grain[place, 0].numpy()
    grey = cut_out(grey, one)
    if one["side"] < 1:
        small = [max(1, round(float(one["side"]) * length)) for length in film.shape]
        tensor = torch.from_numpy(grey)[None, None]
        tensor = functional.interpolate(tensor, size=small, mode="bilinear", antialias=True)
        grey = functional.interpolate(tensor, size=list(film.shape), mode="bilinear")[0, 0].numpy()
    grey = np.clip(grey, 0, 1)
    if one["quality"] < 100:
        grey = jpeg(np.round(grey * 255), int(one["quality"])) / 255
    return np.round(grey * 255).astype(np.uint8)


def move(film: Grey, one: dict[str, npt.NDArray[np.float32]]) -> Grey:
    """Where each pixel of the new film lies in the old one, both from -1 to 1; bilinear, black outside."""
    height, width = film.shape
    across = (2 * np.arange(width) + 1) / width - 1
    down = (2 * np.arange(height) + 1) / height - 1
    x, y = np.meshgrid(across, down)
    factor, angle = np.exp(one["scale"]), one["rotation"]
    cos, sin = np.cos(angle) * factor, np.sin(angle) * factor
    wider = np.exp(one["stretch"] / 2)
    from_x = (cos * x + (one["shear"] - sin) * y) / wider + one["across"]
    from_y = ((sin + one["shear"]) * x + cos * y) * wider + one["down"]
    rows, columns = cubic(height, one["elastic"].shape[1]), cubic(width, one["elastic"].shape[2])
    from_x += 2 * rows @ one["elastic"][0] @ columns.T
    from_y += 2 * rows @ one["elastic"][1] @ columns.T
    if one["mirrored"]:
        from_x = -from_x
    places = [((from_y + 1) * height - 1) / 2, ((from_x + 1) * width - 1) / 2]
    moved: Grey = scipy.ndimage.map_coordinates(film, places, order=1, mode="grid-constant", cval=0)
    return moved


def cubic(pixels: int, points: int) -> Grey:
    """Weights [pixels, points] of Keys' cubic convolution (1981, a = -0.75), ends on the outermost points."""
    weights = np.zeros((pixels, points))
    for pixel in range(pixels):
        place = pixel * (points - 1) / (pixels - 1)
        for neighbour in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            t = abs(place - neighbour)
            a = -0.75
            if t <= 1:
                weight = (a + 2) * t**3 - (a + 3) * t**2 + 1
            else:
                weight = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0
            weights[pixel, min(max(neighbour, 0), points - 1)] += weight
    return weights


def cut_out(grey: Grey, one: dict[str, npt.NDArray[np.float32]]) -> Grey:
    covered = grey.copy()
    height, width = grey.shape
    half = one["cutout"] / 2
    for row in range(height):
        for column in range(width):
            far = max(abs((column + 0.5) / width - one["centre"][0]), abs((row + 0.5) / height - one["centre"][1]))
            if far < half:
                covered[row, column] = grey.mean()
    return covered


def jpeg(film: Grey, quality: int) -> Grey:
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = np.clip((np.array(LUMINANCE) * percent + 50) // 100, 1, 255)
    height, width = film.shape
    padded = np.pad(film, ((0, -height % 8), (0, -width % 8)), mode="edge")
    for row in range(0, padded.shape[0], 8):
        for column in range(0, padded.shape[1], 8):
            block = scipy.fft.dctn(padded[row : row + 8, column : column + 8] - 128, norm="ortho")
            decoded = scipy.fft.idctn(np.round(block / steps) * steps, norm="ortho")
            padded[row : row + 8, column : column + 8] = np.clip(np.round(decoded + 128), 0, 255)
    return padded[:height, :width]
