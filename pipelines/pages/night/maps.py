"""Maps beside the first thumbnails of the worklist: which parts of a film raise the model's probability.

The run's model is fetched again, and the films are read from the archive again and decoded as for scoring. A film takes
0.7 s of a core for MobileNetV2 0.35 (1.1 s on a busy machine) and 0.1 s for resnet18; `models.explain.method_for` has
others. The first one takes about 3 s more.
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
"""After this time no further map is started: a report must not wait for a slow network."""

log = logging.getLogger("rayscan")


def with_maps(
    films: Sequence[WorklistFilm], bundle: str | None, model_id: str, *, seconds: float = SECONDS
) -> tuple[list[WorklistFilm], str]:
    """The same films, with a map added to those with a thumbnail, and the page's sentence about the maps.

    `bundle` is the URI of the model with which the run scored these films, `model_id` its id. If the model cannot be
    fetched or makes no maps, the films are returned unchanged and the sentence says why: the page is still made.
    """
    try:
        return _with_maps(films, bundle, model_id, seconds)
    except RayscanError as error:
        return list(films), f"No maps: {error}."
    except RuntimeError as error:  # torch raises it for unsupported operations and for lack of memory
        log.warning("no maps on the worklist: the model failed", exc_info=True)
        return list(films), f"No maps: the model failed ({str(error).partition(chr(10))[0]})."


def _with_maps(
    films: Sequence[WorklistFilm], bundle: str | None, model_id: str, seconds: float
) -> tuple[list[WorklistFilm], str]:
    import torch  # noqa: PLC0415 (takes 2 s, and few pages have maps)

    from models.explain import method_for  # noqa: PLC0415

    started = time.monotonic()
    if bundle is None:
        raise InputError("the run does not record where its model is")
    loaded = fetch_bundle(bundle)
    if loaded.model_id != model_id:
        raise InputError(f"another model ({loaded.model_id}) is at {bundle} now")
    classifier = loaded.classifier().to(memory_format=torch.channels_last)
    method = method_for(classifier)
    shown: list[WorklistFilm] = []
    skipped = 0
    for film in films:
        if film.thumbnail is None:
            shown.append(film)
        elif time.monotonic() - started > seconds:
            shown.append(film)
            skipped += 1
        else:
            shown.append(_with_map(film, loaded, classifier, method))
    return shown, _sentence(sum(film.map is not None for film in shown), skipped, method)


def _sentence(mapped: int, skipped: int, method: "SaliencyMethod") -> str:
    if not mapped:
        return f"No maps: {'this model is too slow' if skipped else 'no part of these films raises its score'}."
    return (
        f"The coloured copies of {mapped} films show what raised the score, by {METHOD_NAMES[method]}, each scaled to"
        " its own maximum. A map is an aid to reading a score, not a finding."
        + (f" The model is slow: {skipped} more films have none." if skipped else "")
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
