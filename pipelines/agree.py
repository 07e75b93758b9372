"""`rayscan agree`: how closely the engines of this machine agree with a model that was made on another one.

A model is compared when it is promoted, on the machine that promotes it. Made on a machine without a GPU it may be
scored on GPUs by eager torch in float32 only, the slowest engine there is; and a newer OpenVINO or torch may not run it
in a lower precision before it is compared, too. This compares anew, on the model's own validation films, and keeps the
result beside the model: its identity does not change, so nothing is scored again.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from models.engines.agreement import Agreement
from models.engines.agreement import agree as compare_engines
from models.engines.machine import choose_device, this_machine
from pipelines.bundles import fetch_bundle, record_agreements, require_own_films
from pipelines.ingest.dataset import check_fits, load_films, read_dataset_info


@dataclass(frozen=True, kw_only=True)
class AgreementSummary:
    """Which engines of a machine may run a model from now on, in the version that is installed there."""

    bundle: str
    model_id: str
    device: str
    films: int
    """Validation films compared."""
    engines: Mapping[str, str]
    """Name -> `allowed` and how far probabilities move at most, or why not."""


def agree(bundle_uri: str, dataset: str, *, device: str | None = None) -> AgreementSummary:
    """Compare the engines of a device with eager torch in float32, and record the result beside the bundle.

    `dataset` is the one the model was made from. `device` is `cpu`, `cuda` or `cuda:N`; None takes a GPU when there is
    one. Raises `InputError` for another data set, and for a device that is not there.
    """
    place = str(choose_device(device))
    bundle = fetch_bundle(bundle_uri)
    info = read_dataset_info(dataset)
    check_fits(bundle.spec.preprocessing, info, dataset)
    require_own_films(bundle, info.fingerprint, dataset)
    found = compare_engines(bundle, load_films(dataset, "val"), this_machine(place))
    engines = {name: agreement.to_json() for name, agreement in found.items()}
    record_agreements(bundle_uri, bundle, {"engines": engines, "gpu": _gpu(place), "dataset": dataset})
    return AgreementSummary(
        bundle=bundle_uri,
        model_id=bundle.model_id,
        device=_gpu(place) or place,
        films=max((agreement.films for agreement in found.values()), default=0),
        engines={name: _in_words(agreement) for name, agreement in found.items()},
    )


def _in_words(agreement: Agreement) -> str:
    if agreement.reasons:
        return f"not allowed: {'; '.join(agreement.reasons)}"
    return f"allowed: probabilities move by {agreement.max_dp:.2g} at most"


def _gpu(place: str) -> str | None:
    """The name of the GPU; None for a CPU."""
    import torch  # noqa: PLC0415 (two seconds that `--help` does without)

    return torch.cuda.get_device_name(place) if place.startswith("cuda") else None
