"""`rayscan`: the command line, put together from the verbs of `cluster/verbs/`.

Results go to stdout, logs and progress to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage or input (one line says
what and how to mend it), 3 incomplete (run again to resume). Each verb imports what it runs when it runs: `--help` must
answer at once, and torch alone takes two seconds to import.
"""

import os
from collections.abc import Callable
from typing import Annotated, Final

import typer

from cluster.commands import add_verb
from cluster.source import THREADS
from cluster.verbs.data import audit, catalog, demo, prepare
from cluster.verbs.erasure import erase
from cluster.verbs.operations import dashboard, doctor, jobs, logs, stop, submit, wait
from cluster.verbs.registry import models, promote, rollback
from cluster.verbs.runs import explain, prune
from cluster.verbs.scores import compact, history, query, report, score
from cluster.verbs.search import tune
from cluster.verbs.training import agree, crossvalidate, evaluate, recipes, train

VERBS: tuple[Callable[..., None], ...] = (
    demo,
    catalog,
    audit,
    prepare,
    train,
    crossvalidate,
    recipes,
    tune,
    evaluate,
    agree,
    promote,
    rollback,
    models,
    score,
    compact,
    erase,
    prune,
    query,
    history,
    report,
    explain,
    submit,
    jobs,
    logs,
    wait,
    stop,
    doctor,
    dashboard,
)
"""As `--help` lists them. A verb, and its table in a job file, is called what its function is called."""

PRIVATE: Final = 0o027
"""Of what rayscan and the processes it starts write on a local disk, other accounts of the machine may read nothing,
and its group may change nothing; a stricter umask of the caller stays."""

app = typer.Typer(
    name="rayscan",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for function in VERBS:
    add_verb(app, function)


def _tell_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(f"rayscan {version('rayscan')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Tell the version and end.", is_eager=True, callback=_tell_version)
    ] = False,
) -> None:
    """Find pneumonia in chest X-rays at archive scale. Assists triage; not a diagnosis."""


def main() -> None:
    """Entry point of the `rayscan` command."""
    os.umask(os.umask(PRIVATE) | PRIVATE)
    for name, value in THREADS.items():
        os.environ.setdefault(name, value)
    app(prog_name="rayscan")


if __name__ == "__main__":
    main()
