"""Maps beside the first thumbnails of the worklist: where in a film the model's probability comes from.

Made by the model itself, fetched from where the run had it, of films read from the archive anew and decoded as they
were for scoring. A film takes 0.7 s of a core for MobileNetV2 0.35 (1.1 s where others use it, too) and 0.1 s for
resnet18; `models.explain.method_for` has others. About 3 s go by before the first.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from pipelines.bundles import fetch_bundle
from pipelines.decoding.decode import decode
from pipelines.decoding.fetch import fetch
from pipelines.errors import InputError, RayscanError, ScanError
from pipelines.pages.claim import METHOD_NAMES
from pipelines.pages.frame import data_uri
from pipelines.pages.night.worklist import SIDE, WorklistFilm

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.explain import SaliencyMethod
    from models.networks.classifier import ScanClassifier

MOST: Final = 12
SECONDS: Final = 60.0
"""After so many no further map is begun: a report must not wait for a slow network."""

log = logging.getLogger("rayscan")


def with_maps(
    films: Sequence[WorklistFilm], bundle: str | None, model_id: str, *, seconds: float = SECONDS
) -> tuple[list[WorklistFilm], str]:
    """The same films, those with a thumbnail with a map as well, and what the page says of the maps.

    `bundle` is the URI at which the run that scored these films with `model_id` had its model. Where that model cannot
    be had, or makes no maps, the films stay as they are, and the sentence says why: a page is not lost for its maps.
    """
    try:
        return _with_maps(films, bundle, model_id, seconds)
    except RayscanError as error:
        return list(films), f"No maps: {error}."
    except RuntimeError as error:  # torch's word for whatever a network cannot do, or has no memory for
        log.warning("no maps on the worklist: the model failed", exc_info=True)
        return list(films), f"No maps: the model failed ({str(error).partition(chr(10))[0]})."


def _with_maps(
    films: Sequence[WorklistFilm], bundle: str | None, model_id: str, seconds: float
) -> tuple[list[WorklistFilm], str]:
    import torch  # noqa: PLC0415 (takes 2 s, and few pages have maps)

    from models.explain import method_for  # noqa: PLC0415

    started = time.monotonic()
    if bundle is None:
        raise InputError("the run does not say where its model lies")
    found = fetch_bundle(bundle)
    if found.model_id != model_id:
        raise InputError(f"another model ({found.model_id}) lies at {bundle} now")
    classifier = found.classifier().to(memory_format=torch.channels_last)
    method = method_for(classifier)
    shown: list[WorklistFilm] = []
    left = 0
    for film in films:
        if film.thumbnail is None:
            shown.append(film)
        elif time.monotonic() - started > seconds:
            shown.append(film)
            left += 1
        else:
            shown.append(_with_map(film, found, classifier, method))
    return shown, _told(sum(film.map is not None for film in shown), left, method)


def _told(mapped: int, left: int, method: "SaliencyMethod") -> str:
    if not mapped:
        return f"No maps: {'this model is too slow' if left else 'no place of these films raises its score'}."
    return (
        f"The coloured copies of {mapped} films show what raised the score, by {METHOD_NAMES[method]}, each scaled to"
        " its own strongest place. A map is an aid to reading a score, not a finding."
        + (f" The model is slow: {left} more films got none." if left else "")
    )


def _with_map(
    film: WorklistFilm, bundle: "Bundle", classifier: "ScanClassifier", method: "SaliencyMethod"
) -> WorklistFilm:
    from models.explain import picture, saliency  # noqa: PLC0415 (see above)

    try:
        pixels = decode(fetch(film.uri, film.etag), bundle.spec.preprocessing).pixels
    except ScanError:  # gone since its thumbnail was made
        return film
    heat = saliency(classifier, pixels, method=method)
    return replace(film, map=data_uri(picture(pixels, heat, side=SIDE))) if heat.any() else film
