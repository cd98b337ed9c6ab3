"""Job files: YAML with `extends`, `--set`, line numbers and nearest-key hints -> JobSpec.

The one home of yaml. Data, never code: a tag such as `!!python/object` is an error.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.errors import JobError
from orchestrator.job import JobSpec

KeyPath = tuple[str | int, ...]
_MAX_EXTENDS = 16


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but `1e-3` is a number, a date is a string, and a repeated key is an error."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regex) for tag, regex in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever `_Loader` would read as something else than text, the name `1e3` among it."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


class _DocumentDumper(_Dumper):
    """For people: a text of several lines stands as such, and what occurs twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_DocumentDumper.add_representer(str, _represent_text)
_ENV = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


@dataclass
class Tree:
    """A parsed document: plain data, and where each key stands, as `file:line` or `--set key`."""

    data: dict[str, Any] = field(default_factory=dict)
    where: dict[KeyPath, str] = field(default_factory=dict)


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> JobSpec:
    """Read a job file, what it extends, and `--set` overrides.

    Raises:
        JobError: the file cannot be read or is no valid job; names file, line, key and the nearest known key.
    """
    tree = _read_tree(Path(path), ())
    for override in overrides:
        _apply_override(tree, override)
    return validate_job(tree)


def validate_job(tree: Tree) -> JobSpec:
    """Plain data to JobSpec. Strict: `"3"` is no integer and `true` is no number."""
    try:
        return JobSpec.model_validate_json(json.dumps(tree.data), strict=True)
    except ValidationError as error:
        problems = [_describe(detail, tree) for detail in _told_once(error.errors(include_url=False))]
        raise JobError(
            "the job is not valid:\n" + "\n".join(f"  {problem}" for problem in problems),
            fix="correct the keys named above; docs/job-file.md lists them all",
        ) from None


def _told_once(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without the complaint that a section is not `off`, where the section itself says what is wrong in it."""
    inside = [tuple(d["loc"]) for d in details]

    def is_about_off(detail: ErrorDetails) -> bool:
        own = tuple(detail["loc"])
        if not own or not str(own[-1]).startswith("literal["):
            return False
        return any(other != own and other[: len(own) - 1] == own[:-1] for other in inside)

    return [detail for detail in details if not is_about_off(detail)]


def job_to_yaml(job: JobSpec) -> str:
    """The whole resolved job; `load_job` of it gives the same JobSpec."""
    return yaml.dump(job.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def to_yaml(*documents: Any) -> str:
    """Plain data as YAML, one document after the other; texts of several lines stay readable."""
    return yaml.dump_all(documents, Dumper=_DocumentDumper, sort_keys=False, allow_unicode=True, width=120)


def env_names(text: str) -> list[str]:
    """The NAMEs of all `${env:NAME}` in a text, each once."""
    return sorted({match.group(1) for match in _ENV.finditer(text)})


def resolve_env(text: str, environ: Mapping[str, str]) -> str:
    """Replace `${env:NAME}` and `${env:NAME:-default}`.

    Raises:
        JobError: NAME is unset and has no default.
    """

    def value_of(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        if name in environ:
            return environ[name]
        if default is not None:
            return default
        raise JobError(
            f"{text!r} needs the environment variable {name}, which is not set",
            fix=f"export {name}=..., or give a default: ${{env:{name}:-value}}",
        )

    return _ENV.sub(value_of, text)


def _read_tree(path: Path, seen: tuple[Path, ...]) -> Tree:
    real = path.resolve()
    if real in seen or len(seen) > _MAX_EXTENDS:
        raise JobError(f"{path} extends itself: {' -> '.join(str(p) for p in (*seen, real))}", fix="break the circle")
    tree = _parse(path)
    base = tree.data.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise JobError(
            f"{tree.where[('extends',)]}: extends is {base!r}, not a file name",
            fix="write extends: other.yaml",
        )
    merged = _read_tree(path.parent / base, (*seen, real))
    _merge(merged, tree.data, tree.where, ())
    return merged


def _parse(path: Path) -> Tree:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise JobError(f"there is no job file {path}", fix="check the path; examples stand in jobs/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"the job file {path} cannot be read: {error}", fix="it must be a UTF-8 text file") from None
    where: dict[KeyPath, str] = {}
    try:
        data = _plain_data(text, where, str(path))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise JobError(f"{path}{line}: not valid YAML: {error.problem}", fix="correct the line") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise JobError(f"{path}: not valid YAML: {error}", fix="correct the file") from None
    if not isinstance(data, dict):
        raise JobError(
            f"{path} holds {_kind(data)}, not a job", fix="a job is a mapping: name, data, model, train, ..."
        )
    return Tree(data, where)


def _plain_data(text: str, where: dict[KeyPath, str], file: str) -> Any:
    """Parse one document; None for an empty one. Notes in `where` the place of each key."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return _build(loader, node, (), where, file) if node is not None else None
    finally:
        loader.dispose()


def _build(loader: _Loader, node: yaml.Node, at: KeyPath, where: dict[KeyPath, str], file: str) -> Any:
    """Construct plain data from a node, noting each key's line; refuses repeated keys."""
    where[at] = f"{file}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.CollectionNode) and node.tag not in _PLAIN_TAGS:
        problem = f"could not determine a constructor for the tag {node.tag!r}"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(loader.construct_object(key_node, deep=True))
            line = key_node.start_mark.line + 1
            if key in result:
                raise JobError(f"{file}:{line}: the key {key!r} stands twice", fix="keep one of them")
            result[key] = _build(loader, value_node, (*at, key), where, file)
            where[(*at, key)] = f"{file}:{line}"
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, child, (*at, i), where, file) for i, child in enumerate(node.value)]
    value = loader.construct_object(node, deep=True)
    if value is not None and not isinstance(value, (str, int, float, bool)):
        raise JobError(f"{where[at]}: {_kind(value)} cannot stand in a job", fix="use text, numbers, lists, mappings")
    return value


def _apply_override(tree: Tree, override: str) -> None:
    key, equals, text = override.partition("=")
    keys = tuple(key.strip().split("."))
    if not equals or not all(keys):
        raise JobError(f"--set {override!r} has no value", fix="write --set train.steps=100")
    try:
        value = _plain_data(text, {}, f"--set {key.strip()}") if text.strip() else ""
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise JobError(f"--set {override!r}: the value is not valid YAML: {error}", fix="quote it") from None
    nested: Any = value
    where: dict[KeyPath, str] = {}
    for depth in range(len(keys), 0, -1):
        where[keys[:depth]] = f"--set {key.strip()}"
        nested = {keys[depth - 1]: nested}
    # `--set a=null` removes the key, `--set a.b={...}` replaces: what is said last is what holds.
    _merge(tree, nested, where, (), replace_at=keys)


def _merge(
    into: Tree,
    data: Mapping[str, Any],
    where: Mapping[KeyPath, str],
    at: KeyPath,
    replace_at: KeyPath | None = None,
) -> None:
    """Mappings merge, lists and scalars replace, null removes."""
    target: Any = into.data
    for key in at:
        target = target[key]
    for key, value in data.items():
        here: KeyPath = (*at, key)
        if isinstance(value, dict) and isinstance(target.get(key), dict) and here != replace_at:
            _merge(into, value, where, here, replace_at)
            continue
        for known in [k for k in into.where if k[: len(here)] == here]:
            del into.where[known]
        if value is None:
            target.pop(key, None)
            continue
        target[key] = _without_nulls(value)
        into.where.update({k: v for k, v in where.items() if k[: len(here)] == here})


def _without_nulls(value: Any) -> Any:
    """A mapping that nothing stands below: its nulls remove nothing."""
    if not isinstance(value, dict):
        return value
    return {key: _without_nulls(item) for key, item in value.items() if item is not None}


def _describe(detail: ErrorDetails, tree: Tree) -> str:
    """One line of a validation error: where, which key, what was found, what was expected."""
    loc = _keys_only(tuple(detail["loc"]), tree)
    where = next((tree.where[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in tree.where), "the job")
    name = ".".join(str(part) for part in loc)
    if detail["type"] == "extra_forbidden":
        return f"{where}: unknown key {name!r}{_nearest(loc)}"
    if detail["type"] == "missing":
        return f"{where}: the key {name!r} is missing"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{where}: {name + ': ' if name else ''}{message}"
    return (
        f"{where}: {name} = {json.dumps(detail['input'], ensure_ascii=False)[:120]}: {message[0].lower()}{message[1:]}"
    )


def _keys_only(loc: KeyPath, tree: Tree) -> KeyPath:
    """Drop what pydantic adds to a location for the branch of a union: keep what stands in the document."""
    kept: list[str | int] = []
    found: Any = tree.data
    for part in loc:
        if isinstance(found, dict) and part not in found and part != loc[-1]:
            continue
        if isinstance(part, str) and not isinstance(found, dict):
            continue
        kept.append(part)
        inside = (isinstance(found, dict) and part in found) or (isinstance(found, list) and isinstance(part, int))
        found = found[part] if inside else None
    return tuple(kept)


def _nearest(loc: KeyPath) -> str:
    model: Any = JobSpec
    for part in loc[:-1]:
        model = _child(model, part)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return ""
    known = sorted(info.alias or name for name, info in model.model_fields.items())
    close = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(known)}"


def _child(model: Any, part: str | int) -> Any:
    """The section class behind a key, or behind an element of a list."""
    if isinstance(model, type) and issubclass(model, BaseModel):
        by_key = {info.alias or name: info for name, info in model.model_fields.items()}
        info = by_key.get(str(part))
        return _section_in(info.annotation) if info else None
    return _section_in((get_args(model) or (None,))[0]) if isinstance(part, int) else None


def _section_in(annotation: Any) -> Any:
    """The section, or list, among the branches of a union; other types as they are."""
    if get_origin(annotation) is Annotated:
        return _section_in(get_args(annotation)[0])
    if get_origin(annotation) not in (Union, UnionType):
        return annotation
    branches = [_section_in(branch) for branch in get_args(annotation)]
    sections = [b for b in branches if isinstance(b, type) and issubclass(b, BaseModel)]
    return next(iter([*sections, *(b for b in branches if get_origin(b) is list)]), None)


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "a text", type(None): "nothing"}
    return names.get(type(value), type(value).__name__)


def environment() -> Mapping[str, str]:
    """The process's environment: the one place where this module reads it."""
    return os.environ
