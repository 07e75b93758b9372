"""The options that several verbs share, each written once."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.locations import named_or_file, weights_location
from cluster.settings import job_defaults, size
from models.errors import RayscanError
from pipelines.pools import ActorLimits


def _read_job_file(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        names = {parameter.name: parameter.name for parameter in context.command.params if parameter.name}
        for parameter in context.command.params:  # a flag's name may differ from its parameter's: --from
            names |= {flag.lstrip("-").replace("-", "_"): parameter.name for flag in parameter.opts if parameter.name}
        del names["config"]
        try:
            values = job_defaults(path, str(context.info_name), names)
            several = {parameter.name for parameter in context.command.params if getattr(parameter, "multiple", False)}
            context.default_map = {
                names[key]: [value] if names[key] in several and isinstance(value, str) else value
                for key, value in values.items()
            }
        except RayscanError as error:
            raise typer.BadParameter(str(error)) from error
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="JOB.toml",
        callback=_read_job_file,
        is_eager=True,
        help="Job file with a table per verb, keys named like the flags; flags win.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one machine-readable summary to stdout.")]
Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster to work on (host:port or auto). Default: RAY_ADDRESS, else Ray on this machine."),
]
JobsAddress = Annotated[
    str | None, typer.Option(help="Dashboard of the cluster. Default: RAY_ADDRESS, else http://127.0.0.1:8265.")
]
MinActors = Annotated[int | None, typer.Option(help="Actors to keep even when they are idle (1).")]
MaxActors = Annotated[
    int | None, typer.Option(help="Most actors of one core (one for each core the cluster can grow to).")
]
Memory = Annotated[
    str | None, typer.Option(metavar="2GiB", help="Memory each actor asks Ray for (none: Ray counts cores only).")
]
Dashboard = Annotated[
    bool, typer.Option("--dashboard", help="Start Ray's dashboard here, too; it takes 3 s. A cluster has its own.")
]
Include = Annotated[
    str | None,
    typer.Option(metavar="GLOB[,GLOB]", help="List only these files, e.g. '*.dcm' or 'radiology/2026/**' (all)."),
]
Exclude = Annotated[
    str | None, typer.Option(metavar="GLOB[,GLOB]", help="List all but these files, e.g. 'ct/**,*_thumb.png' (none).")
]
Since = Annotated[
    str | None,
    typer.Option(metavar="DATE|7d", help="List only files changed since then: 2026-11-01, or 7d or 12h ago (all)."),
]
NoFilms = Annotated[
    bool, typer.Option("--no-films", help="Put no validation films into the bundle; they are patients' images.")
]
IntendedUseFile = Annotated[
    str | None,
    typer.Option(
        "--intended-use",
        metavar="U.toml",
        help="Whose films the model is for, such as age_years = [1, 5], beyond what the training films show.",
        parser=named_or_file,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|imagenet",
        help="Pretrained weights to start from: .safetensors or .pth.",
        parser=weights_location,
    ),
]


def given(**values: Any) -> dict[str, Any]:
    """The options somebody set; the others take the defaults of the package's own settings."""
    return {name: value for name, value in values.items() if value is not None}


def actor_limits(
    min_actors: int | None, max_actors: int | None, memory: str | None, gpus: int | None = None
) -> ActorLimits:
    """The limits that the flags ask for. Raises `InputError` for a memory that is no size, or a value out of range."""
    asked = None if memory is None else size(memory)
    return ActorLimits(min_actors=min_actors, max_actors=max_actors, memory=asked, gpus=gpus)
