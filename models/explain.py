"""Saliency maps: which parts of a film raise the probability of disease; and a picture of film and map.

A map is an aid to reading a score, not a finding. It shows what moved the model's output, and a model can be right for
a wrong reason: a marker, a tube, the edge of the film. `pointing_game` says how often maps hit what they should.

    occlusion  how much the output falls when a patch is covered by the film's mean grey (Zeiler & Fergus 2014, sec.
               4.2). 121 passes forward, for any network.
    gradients  integrated gradients from a film of its mean grey (Sundararajan et al. 2017, sec. 3), smoothed: single
               pixels are not what a reader looks for. 32 passes forward and back, for any network.
    cam        the network's last maps that still have a place, each value times its gradient (HiResCAM: Draelos & Carin
               2020, "Use HiResCAM instead of Grad-CAM for faithful explanations", sec. 3.2; Grad-CAM averages the
               gradient over the film first). One pass forward and back, for networks whose maps keep their places.

How often the peak lies inside the planted opacity (4 % of the film) of 60 phantom films, a cnn of depth 3 at 96 pixels,
by its pooling (`tests/models/test_explain.py` has the last one):

    pooling    occlusion   gradients    cam
    avg             0.83        0.77   0.60
    both            0.98        0.97   0.53
    max             0.98        0.95   0.78

All three are captum's, of the disease's logit against its absence, which rises with the calibrated probability.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from captum.attr import IntegratedGradients, LayerGradientXActivation, Occlusion
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from models.errors import InputError
from models.networks.classifier import ScanClassifier

SaliencyMethod = Literal["occlusion", "gradients", "cam"]

SIDE: Final = 7
"""Fewest places across the maps `cam` reads: coarser ones cannot tell the lobes of a lung apart."""
SALIENCY_METHODS: Final[tuple[SaliencyMethod, ...]] = get_args(SaliencyMethod)
LIGHT: Final = 1e9
"""Floating-point operations a film up to which a network is covered patch by patch: about 6 seconds of one core."""
BATCH: Final = 16
"""Films, or covered copies of them, in one pass."""
PATCHES: Final = 6
"""A covered patch is this part of the film's side; the next one starts half a patch further."""
STEPS: Final = 32
"""Of the integral from the blank film to the film."""
SMOOTH: Final = 8
"""Integrated gradients are averaged over this part of the film's side."""
WARM: Final = ((230, 97, 1), (253, 184, 99), (255, 247, 188))
"""RGB of the overlay from faint to strong: orange to pale yellow, told from grey, and in order, by every eye."""
FAINT: Final = 0.25
"""Below this the film is left as it is."""
OPAQUE: Final = 0.6
"""Share of colour where the map is strongest; the film stays visible under it."""


def saliency(
    classifier: ScanClassifier, pixels: npt.NDArray[np.uint8], *, method: SaliencyMethod = "occlusion"
) -> npt.NDArray[np.float32]:
    """How much each pixel raises the output for disease, of films uint8 [N, H, W] or one [H, W]: float32 maps, 0 to 1.

    Each film's largest value is 1; a film in which no pixel does has a map of zeros. The same film gets
    the same map each time, on the device the classifier is on, whose weights and gradients stay as they are. Raises
    `InputError` for other arrays, for an unknown method, for a classifier in training mode, and for `cam` where the
    network has no such maps.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in {2, 3}:
        raise InputError(
            f"saliency takes uint8 films [N, H, W] or one [H, W], not {pixels.dtype} {list(pixels.shape)}; decode first"
        )
    if method not in SALIENCY_METHODS:
        raise InputError(f"unknown saliency method {method!r}; choose from {', '.join(SALIENCY_METHODS)}")
    if classifier.training:
        raise InputError("this classifier is in training mode, where dropout makes maps random; call its eval() first")
    films = pixels if pixels.ndim == 3 else pixels[None]
    maps = _Maps(classifier, method)
    with _one_thread():
        computed = [maps(films[start : start + BATCH]) for start in range(0, len(films), BATCH)]
    return torch.cat([torch.zeros(0, *films.shape[1:]), *computed]).numpy().reshape(pixels.shape)


def method_for(classifier: ScanClassifier) -> SaliencyMethod:
    """The method that suits a network: occlusion where it is quick, else cam, else gradients.

    Seconds a film on one core of an AMD EPYC: MobileNetV2 0.35 (0.1 GFLOP) occlusion 0.6, cam 0.01; resnet18 (3.5)
    occlusion 3.3, cam 0.05; Xception (17) occlusion 40, gradients 40, cam 0.8; a small ViT (2.5) occlusion 7,
    gradients 3.5. On films of children the maps of a frozen MobileNetV2 stayed within the chest with occlusion; with
    gradients they clung to markers and edges, with cam they were wide.
    """
    size = classifier.preprocess.size
    blank = torch.zeros(1, 1, size, size, dtype=classifier.precision, device=_device(classifier))
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        classifier.network(blank)
    if counted.get_total_flops() <= LIGHT:
        return "occlusion"
    return "gradients" if _last_maps(classifier) is None else "cam"


def pointing_game(
    heat: npt.NDArray[np.float32], findings: npt.NDArray[np.bool_], *, tolerance: float = 0.0
) -> tuple[int, int]:
    """How many maps [N, H, W] peak inside the finding [N, H, W], and of how many (Zhang et al. 2016, sec. 5.2).

    Films without a finding do not count. `tolerance` widens the findings by this share of the film's width; Zhang
    et al. allow 15 pixels of pictures about 500 wide, 0.03. Raises `InputError` when the shapes differ.
    """
    if heat.shape != findings.shape or heat.ndim != 3:
        raise InputError(
            f"maps {list(heat.shape)} and findings {list(findings.shape)} must both be [N, H, W]; stretch them alike"
        )
    hits = films = 0
    for map_, finding in zip(heat, findings, strict=True):
        if not finding.any():
            continue
        films += 1
        row, column = np.unravel_index(map_.argmax(), map_.shape)
        rows, columns = np.nonzero(finding)
        nearest = np.hypot(rows - row, columns - column).min()
        hits += bool(map_.any() and nearest <= tolerance * finding.shape[1])
    return hits, films


def picture(
    film: npt.NDArray[np.uint8], heat: npt.NDArray[np.float32], *, side: int | None = None
) -> npt.NDArray[np.uint8]:
    """RGB uint8 [H, W, 3] of a film uint8 [H, W] in grey with its map float32 [H, W] in warm colours; no text in it.

    `side` stretches both to a square of so many pixels. Raises `InputError` when the shapes differ.
    """
    if film.dtype != np.uint8 or film.ndim != 2 or film.shape != heat.shape:
        raise InputError(
            f"a picture takes a film uint8 [H, W] and its map of the same shape,"
            f" not {film.dtype} {list(film.shape)} and {list(heat.shape)}"
        )
    grey, warmth = Image.fromarray(film), Image.fromarray(heat.astype(np.float32))
    if side is not None:
        grey, warmth = (image.resize((side, side), Image.Resampling.BICUBIC) for image in (grey, warmth))
    strength = np.clip((np.asarray(warmth) - FAINT) / (1 - FAINT), 0, 1)
    stops = np.linspace(0, 1, len(WARM))
    colour = np.stack([np.interp(strength, stops, channel) for channel in np.array(WARM).T], axis=-1)
    share = OPAQUE * np.sqrt(strength)[..., None]
    blended = (1 - share) * np.asarray(grey)[..., None] + share * colour
    painted: npt.NDArray[np.uint8] = np.rint(blended).astype(np.uint8)
    return painted


@contextmanager
def _one_thread() -> Iterator[None]:
    """Passes of a few films are too small to share, and the threads that wait for one another eat what others need.

    On two cores with other work on them, a film covered patch by patch took 1.1 s with one thread, 5 to 21 with two.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Maps:
    """uint8 [N, H, W] -> float32 [N, H, W] on the CPU: the maps of one classifier by one method."""

    def __init__(self, classifier: ScanClassifier, method: SaliencyMethod) -> None:
        self.classifier = classifier
        self.method = method
        self.layer = _last_maps(classifier) if method == "cam" else None
        if method == "cam" and self.layer is None:
            raise InputError("this network keeps no maps that `cam` could read; choose occlusion or gradients")

    # callers are often in inference mode, which has no gradients
    @torch.inference_mode(mode=False)
    @torch.enable_grad()
    def __call__(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        films = torch.tensor(pixels, device=_device(self.classifier))
        inputs = self.classifier.preprocess(films).requires_grad_()
        shares = {"cam": self._cam, "occlusion": self._occlusion, "gradients": self._gradients}[self.method](inputs)
        for_disease = torch.relu(shares.detach().float())
        maps = functional.interpolate(for_disease, size=films.shape[-2:], mode="bilinear").squeeze(1)
        largest = maps.amax(dim=(1, 2), keepdim=True)
        return torch.where(largest > 0, maps / largest.clamp_min(torch.finfo(torch.float32).tiny), 0).cpu()

    def _cam(self, inputs: Tensor) -> Tensor:
        products: Tensor = LayerGradientXActivation(self._score, self.layer).attribute(inputs)
        return products.sum(dim=1, keepdim=True)

    def _occlusion(self, inputs: Tensor) -> Tensor:
        patch = -(-inputs.shape[-1] // PATCHES)
        fall: Tensor = Occlusion(self._score).attribute(
            inputs.detach(), (1, patch, patch), strides=(1, patch // 2, patch // 2), baselines=_mean_grey(inputs)
        )
        return _smoothed(fall)

    def _gradients(self, inputs: Tensor) -> Tensor:
        if not self._score(inputs).requires_grad:  # it does not depend on the film
            return torch.zeros_like(inputs)
        shares: Tensor = IntegratedGradients(self._score).attribute(
            inputs, baselines=_mean_grey(inputs), n_steps=STEPS, internal_batch_size=BATCH
        )
        return _smoothed(shares)

    def _score(self, inputs: Tensor) -> Tensor:
        """Log odds of disease [N], uncalibrated: calibration does not change which part of a film raises them."""
        logits: Tensor = self.classifier.network(inputs.to(self.classifier.precision)).float()
        return torch.logsumexp(logits[:, 1:], dim=1) - logits[:, 0]


def _device(classifier: ScanClassifier) -> torch.device:
    return next(classifier.buffers()).device


def _mean_grey(inputs: Tensor) -> Tensor:
    return inputs.detach().mean(dim=(2, 3), keepdim=True).expand_as(inputs).contiguous()


def _smoothed(shares: Tensor) -> Tensor:
    """Averaged twice over a square of SMOOTH: about a Gaussian."""
    reach = shares.shape[-1] // SMOOTH // 2
    for _ in range(2):
        shares = functional.avg_pool2d(shares, 2 * reach + 1, stride=1, padding=reach, count_include_pad=False)
    return shares


@torch.no_grad()
def _last_maps(classifier: ScanClassifier) -> nn.Module | None:
    """The module that makes the last maps [N, C, h, w] of at least SIDE places across; None where there are none.

    Of the modules that run at this resolution the outermost is taken, the last of several: inside a residual block the
    maps lack what the shortcut brings. A network that goes on in tokens [N, T, C] or in [N, h, w, C] has none to read,
    for it mixes the places afterwards.
    """
    made: list[tuple[str, nn.Module, torch.Size]] = []
    hooks = [
        module.register_forward_hook(
            lambda module, _, output, name=name: made.append((name, module, getattr(output, "shape", torch.Size())))
        )
        for name, module in classifier.network.named_modules()
        if name
    ]
    size = classifier.preprocess.size
    try:
        blank = torch.zeros(1, 1, size, size, dtype=classifier.precision, device=_device(classifier))
        classifier.network(blank)
    finally:
        for hook in hooks:
            hook.remove()
    places = [shape[2] if len(shape) == 4 and shape[2] == shape[3] else 0 for _, _, shape in made]
    coarsest = min((place for place in places if SIDE <= place < size), default=size)
    last = [(-name.count("."), at) for at, (name, _, _) in enumerate(made) if places[at] == coarsest]
    if not last:
        return None
    _, taken = max(last)
    mixed = any(len(made[at][2]) > 2 and not places[at] for at in range(taken, len(made)))
    return None if mixed else made[taken][1]
