"""Verbs for a cluster: send work there, follow it, check its nodes."""

from typing import Annotated

import typer
from typer.core import TyperCommand, TyperGroup

from cluster import output, preflight
from cluster.job_files import check_arguments, files_to_send
from cluster.locations import location
from cluster.options import Address, Config, JobsAddress, Json


def submit(
    context: typer.Context,
    command: Annotated[list[str], typer.Argument(metavar="-- VERB ...", help="The verb and its arguments.")],
    address: JobsAddress = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return as soon as the job is submitted.")] = False,
    stop_on_term: Annotated[
        bool, typer.Option("--stop-on-term", help="On SIGTERM, as at a scheduler's deadline, stop the job, too.")
    ] = False,
    config: Config = None,
) -> None:
    """Run a verb on a cluster: stream its log, and exit with its exit code."""
    verbs = context.find_root().command
    assert isinstance(verbs, TyperGroup)
    name, *arguments = command
    preflight.check_verb(name, verbs.commands)
    verb = verbs.commands[name]
    assert isinstance(verb, TyperCommand)
    preflight.check_sent(command)
    files = files_to_send(arguments, check_arguments(verb, name, arguments))
    import cluster.jobs

    code = cluster.jobs.submit(command, address, wait=not no_wait, stop_on_term=stop_on_term, files=files)
    raise typer.Exit(code)


def jobs(address: JobsAddress = None, config: Config = None, json: Json = False) -> None:
    """List the jobs submitted to a cluster."""
    from cluster.jobs import jobs_address, list_jobs

    submitted = list_jobs(address)
    output.show(
        submitted if submitted or json else f"no job was submitted to {jobs_address(address)} yet", as_json=json
    )


def logs(
    job: Annotated[str, typer.Argument(help="Id of the job, as `rayscan jobs` shows it.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    address: JobsAddress = None,
    config: Config = None,
) -> None:
    """Print a job's log so far; with -f to its end, which comes with the exit code of its verb."""
    from cluster.jobs import follow_job, job_logs

    if follow:
        raise typer.Exit(follow_job(job, address))
    output.write(job_logs(job, address) or f"{job} has written nothing yet")


def wait(
    job: Annotated[str, typer.Argument(help="Id of the job, as `rayscan jobs` shows it.")],
    address: JobsAddress = None,
    config: Config = None,
) -> None:
    """Wait until a job ends, and exit with the exit code of its verb; 3 if it was stopped: submit it again."""
    from cluster.jobs import follow_job

    raise typer.Exit(follow_job(job, address, write=lambda text: None))


def stop(
    job: Annotated[str, typer.Argument(help="Id of the job, as `rayscan jobs` shows it.")],
    address: JobsAddress = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Stop a job; what it wrote stays, and running the same verb again resumes it."""
    from cluster.jobs import stop_job

    output.show({"job": job, "stopped": stop_job(job, address)}, as_json=json)


def doctor(
    uri: Annotated[str | None, typer.Argument(help="Storage every node must reach.", parser=location)] = None,
    address: Address = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Check every node: versions, same code, clock, disk, memory, GPU, token, ports, storage; exit 1 on a fault."""
    if uri is not None:
        preflight.check_uri(uri)
    preflight.check_ray(address)
    from cluster.doctor import examine
    from cluster.findings import told
    from cluster.session import ray_session

    with ray_session(address, dashboard=False) as session:
        findings = examine(uri, session.dashboard_url)
    output.show(findings if json else told(findings), as_json=json)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def dashboard(address: JobsAddress = None, config: Config = None, json: Json = False) -> None:
    """Show where the dashboard is, and whether it answers."""
    from cluster.jobs import dashboard_address

    output.show(dashboard_address(address), as_json=json)
