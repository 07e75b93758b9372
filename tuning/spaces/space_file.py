"""Search spaces as files: the ones that come with rayscan (`tuning/spaces/`), and what a user writes.

    base = "default"                                    the space this one changes: default, grid, cnn-grid, or "empty"
    family = ["cnn", "resnet18"]                        mlp, cnn, names of timm backbones
    batch_size = 32                                     a fixed value
    optimiser = ["adamw", "sgd"]                        a list of choices
    learning_rate = { low = 1e-4, high = 1e-2, log = true }    a range; log = false is the default
    warm_up = { low = 0.0, high = 0.2, when = { schedule = ["cosine", "constant"] } }    searched only then;
                                                        of choices: { choices = […], when = … }
    [cnn]                                               for one family: its architecture, and any of the above that
    depth = { low = 3, high = 5 }                       differs for it; [backbone] is for all timm backbones,
    [resnet18]                                          a table with the name of one for that one alone
    weights = ["none", "weights/resnet18.safetensors"]  what it starts from: none, imagenet, URIs or files (a path is
                                                        relative to this file's folder)
    [pretrained]                                        for networks that start from pretrained weights: head_first,
    frozen_groups = [0, 2]                              l2, and whatever differs for them
    [probe]                                             heads on frozen features: l2, hidden, steps

Names are those of tuning/training/settings.py, models/networks/cnn.py and models/networks/zoo.py, beside `resolution`
(side of the network's input in pixels) and `normalise`. What no table mentions keeps its default.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from models.errors import InputError
from models.messages import did_you_mean
from models.networks.cnn import smallest_film
from models.networks.zoo import build, check_parameters, entry, layer_groups
from models.spec import ModelSpec, Preprocessing, Scalar
from tuning.spaces.domain import Domain
from tuning.spaces.space import (
    BACKBONE,
    EVERY,
    OWN_FAMILIES,
    PRETRAINED,
    PROBES,
    TRAINING,
    SearchSpace,
    architecture,
    defaults,
    known,
)
from tuning.toml_files import absolute, folder_of, names, read_toml, toml_lines
from tuning.training.head_settings import HeadSettings
from tuning.training.settings import TrainSettings

DEFAULT: Final = "default"
GRID: Final = "grid"
EMPTY: Final = "empty"
_SHARED: Final = {EVERY, PRETRAINED, PROBES}
_TABLES: Final = ("mlp", "cnn", BACKBONE, PRETRAINED, PROBES)


def space_names() -> list[str]:
    """The spaces that come with rayscan."""
    return names("space")


def space_for(
    size: int,
    *,
    source: str = DEFAULT,
    families: Sequence[str] | None = None,
    resolutions: Sequence[int] | None = None,
    weights: str | None = None,
) -> SearchSpace:
    """The space for a dataset of films `size` pixels wide.

    `source` is a space's name or file; `families`, `resolutions` and the backbones' `weights` replace its own.
    Resolutions above the dataset's size are left out (enlarged films carry no more detail), and so are depths of the
    CNN that do not fit the smallest resolution; where no resolution is left, it is the dataset's own size.
    Raises `InputError` for a space that cannot be searched.
    """
    space = read_space(source)
    tables = {table: dict(domains) for table, domains in space.tables.items()}
    if resolutions:
        for domains in tables.values():
            domains.pop("resolution", None)
        tables[EVERY]["resolution"] = Domain.parse("resolution", list(resolutions), int)
    chosen = tuple(dict.fromkeys(families)) if families else space.families
    _refuse_idle_tables(source, {*space.families, *chosen})
    if weights is not None:
        if all(family in OWN_FAMILIES for family in chosen):
            raise InputError("weights are for timm backbones; name one with --family")
        for domains in tables.values():
            domains.pop("weights", None)
        tables.setdefault(BACKBONE, {})["weights"] = Domain(choices=(absolute(weights),))
    return fitted(_checked(SearchSpace(families=chosen, tables=tables)), size)


def read_space(source: str) -> SearchSpace:
    """The space of this name, or in the TOML file at this path. Raises `InputError` where there is none."""
    try:
        return _checked(from_json(_merged(source), folder_of(source)))
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(source) else f"{source}: {error}") from error


def from_json(value: Mapping[str, Any], folder: Path | None = None) -> SearchSpace:
    """The inverse of `SearchSpace.to_json`. Raises `InputError` for what is not a space.

    Paths of weights are relative to `folder`, by default the current one.
    """
    tables = {EVERY: {name: of for name, of in value.items() if name != "family" and not _is_table(name, of)}}
    tables |= {name: of for name, of in value.items() if _is_table(name, of)}
    families = value.get("family", [])
    families = [families] if isinstance(families, str) else families
    if not isinstance(families, list) or not all(isinstance(name, str) for name in families):
        raise InputError(f'family = {families!r} names no families; write family = ["mlp", "cnn"]')
    parsed: dict[str, dict[str, Domain]] = {}
    for table, of in tables.items():
        if table and table not in _TABLES:
            _check_table(table, families)
        names = known(table)
        parsed[table] = {}
        for name, values in of.items():
            if name not in names:
                where = f"[{table}]" if table else "a space"
                raise InputError(f"{where} has no {name!r}; {_hint(name, [*names, *(_TABLES if not table else ())])}")
            domain = Domain.parse(name, values, type(names[name]))
            if name == "weights":
                domain = replace(domain, choices=tuple(absolute(str(path), folder) for path in domain.choices))
            parsed[table][name] = domain
    return SearchSpace(families=tuple(dict.fromkeys(families)), tables=parsed)


def to_toml(space: SearchSpace) -> str:
    """A space as a file that `read_space` reads."""
    value = space.to_json()
    tables = {name: of for name, of in value.items() if _is_table(name, of)}
    lines = toml_lines({"base": EMPTY, **{name: of for name, of in value.items() if name not in tables}})
    for table, of in tables.items():
        lines += ["", f"[{table}]", *toml_lines(of)]
    return "\n".join(lines) + "\n"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How two spaces, as JSON, differ: one short line."""
    flat = [dict(_flat(space)) for space in (before, now)]
    names = [name for name in {**flat[0], **flat[1]} if flat[0].get(name) != flat[1].get(name)]
    changes = [f"{name}: {json.dumps(flat[0].get(name))}, now {json.dumps(flat[1].get(name))}" for name in names[:3]]
    return "; ".join(changes) + (f"; and {len(names) - 3} more" if len(names) > 3 else "")


def fitted(space: SearchSpace, size: int) -> SearchSpace:
    """The space for films of this size, without the tables of other families; see `space_for`."""
    pretrained = any(space.weights_of(family) for family in space.families)
    wanted = {EVERY, *space.families, *({PRETRAINED, PROBES} if pretrained else ())}
    wanted |= set() if all(family in OWN_FAMILIES for family in space.families) else {BACKBONE}
    tables = {table: dict(domains) for table, domains in space.tables.items() if table in wanted}
    for domains in tables.values():
        if "resolution" in domains:
            domains["resolution"] = _at_most(domains["resolution"], size)
    for_size = SearchSpace(families=space.families, tables=tables)
    if "cnn" in space.families and "depth" in tables.get("cnn", {}):
        branch = for_size.branch("cnn")
        sides = branch["resolution"][1].edges() if "resolution" in branch else (size,)
        tables["cnn"]["depth"] = _within(tables["cnn"]["depth"], min(int(side) for side in sides))
    _check_frozen(for_size)
    return for_size


def _merged(source: str) -> dict[str, Any]:
    """A file on top of its base."""
    value = read_toml("space", source)
    value.pop("about", None)
    base = value.pop("base", DEFAULT)
    if base == EMPTY:
        return value
    if base not in space_names():
        raise InputError(f"base = {base!r}: there is no such space; choose {', '.join([*space_names(), EMPTY])}")
    merged = _merged(base)
    for name, of in value.items():
        merged[name] = {**merged.get(name, {}), **of} if _is_table(name, of) else of
    return merged


def _refuse_idle_tables(source: str, families: Set[str]) -> None:
    """Raise `InputError` where a person's file has a table for a backbone that is not searched.

    The spaces that come along have tables for backbones that --family may add.
    """
    if source in space_names():
        return
    for table, of in read_toml("space", source).items():
        if _is_table(table, of) and table not in {*_TABLES, *families}:
            raise InputError(f"{source}: [{table}] is for a backbone that is not searched; add it to family")


def _is_table(name: str, value: Any) -> bool:
    """Whether this is a table of parameters, and not a range or conditional choice."""
    return isinstance(value, dict) and name not in known(EVERY) and not {"low", "high", "choices"} & set(value)


def _check_table(table: str, families: Iterable[str]) -> None:
    """Raise `InputError` for a table that is of no family the zoo knows."""
    hint = did_you_mean(table, [*_TABLES, *TRAINING, *families])
    if hint and table not in families:
        raise InputError(f"a space has no table [{table}]; {hint}")
    entry(table)  # refuses names the zoo does not know


def _checked(space: SearchSpace) -> SearchSpace:
    """The space itself, if each of its suggestions can be built and trained; else raises `InputError`."""
    if not space.families:
        raise InputError("there is no family to search; choose mlp, cnn or the name of a timm backbone")
    for family in space.families:
        if family == "majority":
            raise InputError("cannot search the family 'majority': it learns nothing; choose mlp, cnn or a backbone")
        entry(family)  # refuses names the zoo does not know
        for pretrained in (False, True) if space.weights_of(family) else (False,):
            _check_branch(space, family, pretrained=pretrained)
    for name, domain in space.tables.get(PROBES, {}).items():
        for value in domain.edges():
            HeadSettings(**{name: value})  # type: ignore[arg-type] # it checks them
    return space


def _check_branch(space: SearchSpace, family: str, *, pretrained: bool) -> None:
    branch = {name: domain for name, (_, domain) in space.branch(family, pretrained=pretrained).items()}
    for name, domain in branch.items():
        for other in domain.when:
            if other not in defaults(family):
                raise InputError(f"{name}: when names {other!r}; {_hint(other, defaults(family))}")
        for value in domain.edges():
            _check_value(family, name, value)
    training = [name for name in branch if name in TRAINING]
    for one, other in combinations(training, 2):
        for values in _joint_values(one, branch[one], other, branch[other]):
            try:
                TrainSettings(**values)
            except InputError as error:
                raise InputError(
                    f"{error}; or make one depend on the other, as in"
                    f' {other} = {{ choices = […], when = {{ {one} = "…" }} }}'
                ) from error


def _joint_values(name: str, domain: Domain, other: str, other_domain: Domain) -> Iterator[dict[str, Any]]:
    """Pairs of values of two parameters that a trial may have together."""
    for value in domain.edges():
        for other_value in other_domain.edges():
            if value in other_domain.when.get(name, (value,)) and other_value in domain.when.get(other, (other_value,)):
                yield {name: value, other: other_value}


def _check_value(family: str, name: str, value: Scalar) -> None:
    """Raise `InputError` where a value by itself is out of range."""
    alone: dict[str, Any] = {name: value}
    if name in TRAINING:
        TrainSettings(**alone)
    elif name in architecture(family):
        check_parameters(family, alone)
    elif name == "resolution":
        Preprocessing(size=alone[name])
    elif name == "normalise":
        Preprocessing(**alone)
    elif name == "l2":
        HeadSettings(**alone)


def _check_frozen(space: SearchSpace) -> None:
    """Raise `InputError` where more groups of layers may be frozen than a network has."""
    for family in space.families:
        most = 0
        for pretrained in (False, *([True] if space.weights_of(family) else [])):
            branch = space.branch(family, pretrained=pretrained)
            if "frozen_groups" in branch:
                most = max(most, *(int(value) for value in branch["frozen_groups"][1].edges()))
        if most == 0:
            continue
        if family in OWN_FAMILIES:
            raise InputError(f"frozen_groups: {family} starts from random weights, so all of it must learn; give 0")
        groups = len(layer_groups(build(ModelSpec(name=family))))
        if most >= groups:
            raise InputError(
                f"frozen_groups={most}: {family} has {groups} groups of layers; choose {groups - 1} at most"
            )


def _at_most(domain: Domain, size: int) -> Domain:
    """The resolutions up to this size, in order; the size itself where there is none."""
    if domain.choices:
        sides = sorted(int(side) for side in domain.choices if int(side) <= size)
        return replace(domain, choices=tuple(sides) or (size,))
    assert domain.low is not None
    assert domain.high is not None
    if domain.low >= size:
        return Domain(choices=(size,), when=domain.when)
    return replace(domain, high=min(size, int(domain.high)))


def _within(depths: Domain, side: int) -> Domain:
    """The depths that fit a film of this size."""
    first, last = int(depths.edges()[0]), int(depths.edges()[-1])
    values = [int(depth) for depth in depths.choices or range(first, last + 1)]
    fitting = [depth for depth in values if smallest_film(depth) <= side]
    if not fitting:
        least = min(values)
        raise InputError(
            f"no depth of the cnn fits films of {side} pixels: {least}, the least, needs {smallest_film(least)}"
        )
    return depths if fitting == values else Domain(choices=tuple(fitting), when=depths.when)


def _hint(name: str, names: Iterable[str]) -> str:
    return did_you_mean(name, names) or f"known are {', '.join(sorted(names))}"


def _flat(value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, content in value.items():
        if _is_table(name, content):
            yield from ((f"[{name}] {inner}", values) for inner, values in content.items())
        else:
            yield name, content
