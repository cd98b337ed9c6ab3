"""The job format, for editors and for the manual: both are made from the models in `job.py`, so they cannot drift.

python -m orchestrator.job_schema > jobs/job.schema.json
python -m orchestrator.job_schema --markdown             # the tables of docs/job-file.md
python -m orchestrator.job_schema --into docs/job-file.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.job import JobSpec

BEGIN = "<!-- keys: made by `python -m orchestrator.job_schema --into docs/job-file.md` -->"
END = "<!-- keys: end -->"

_EXTENDS = {
    "type": "string",
    "minLength": 1,
    "description": "Another job file, relative to this one: mappings merge, lists and scalars replace, null removes.",
}

_MEANINGS: Mapping[str, str] = {
    "Data.sources": "Where the text comes from: either these or `datasets`.",
    "Rules.min_words": "Words of a document, at least.",
    "Rules.max_words": "Words of a document, at most.",
    "Rules.min_mean_word_length": "Characters of a word on average, at least.",
    "Rules.max_mean_word_length": "Characters of a word on average, at most.",
    "Rules.max_duplicate_lines": "Share of lines that are the same as an earlier one.",
    "Rules.max_duplicate_paragraphs": "Share of paragraphs that are the same as an earlier one.",
    "Rules.max_duplicate_line_characters": "Share of characters in such lines.",
    "Rules.max_duplicate_paragraph_characters": "Share of characters in such paragraphs.",
    "Rules.max_top_3gram": "The same of 3 words.",
    "Rules.max_top_4gram": "The same of 4 words.",
    **{f"Rules.max_duplicate_{n}gram": f"The same of {n} words." for n in range(6, 11)},
    "Rules.lorem_ipsum": "A document with this phrase is removed.",
    "Rules.curly_bracket": "A document with `{` is removed.",
    "Rules.min_sentences": "Sentences that are left, at least.",
    "Clean.unicode": "One spelling of each letter with its accents; `nfkc`: of ligatures and full-width letters too.",
    "Clean.language": "Documents in other languages are removed; null: none is.",
    "Near.shingle_words": "Words of a shingle.",
    "Evaluation.format": "As in a source.",
    "Deduplicate.ngram_words": "Words of the runs that `against` looks for.",
    "Privacy.kinds": "What is looked for.",
    "Split.validation": "Share of the documents for the scores during training; 0: none.",
    "Split.test": "Share that neither training nor validation sees: `slipway evaluate --split test`.",
    "Model.layers": "Blocks of attention and a feed-forward network.",
    "Model.width": "Numbers in the vector of a token; a multiple of `heads`.",
    "Model.heads": "Attention heads; with RoPE `width / heads` is even.",
    "Model.dropout": "Share of activations dropped in training: embeddings, attention, both residual branches.",
    "Model.rope_theta": "Base of the rotary angles.",
    "Model.tie_embeddings": "Use the token table as output projection too.",
    "Train.steps": "Optimizer steps of the whole run.",
    "Train.precision": "`bf16`, `fp16`: computed with rounded copies of fp32 weights; `fp16` needs GPUs.",
    "Train.seed": "Of the weights, the order of the samples, and dropout.",
    "Optimizer.learning_rate": "The highest, reached at the end of the warm-up.",
    "Optimizer.weight_decay": "Of matrices and tables; decoupled, but for sgd and adagrad.",
    "Optimizer.beta1": "Decay of the mean of gradients.",
    "Optimizer.beta2": "Decay of the mean of their squares.",
    "Optimizer.eps": "Added to the denominator.",
    "Schedule.name": "What follows the warm-up.",
    "Schedule.warmup_steps": "Steps in which the rate rises from 0; a run that is shorter ends on the way up.",
    "Workers.min": "With fewer that fit, the job is refused (exit 4).",
    "Workers.max": "Never more than these; where only `min` is given, the same number.",
    "Workers.gpus": "GPUs of one worker; 0 trains on the CPU.",
    "Masking.share": "Of a sample's tokens.",
    "Lora.rank": "Width of the updates.",
    "Lora.dropout": "Share of the updates' inputs dropped in training.",
    "Checkpoint.every_steps": "Steps between two checkpoints.",
    "Checkpoint.keep_last": "Older ones are deleted once a new one is committed.",
    "Serve.port": "On 127.0.0.1; `slipway serve --port` overrides it.",
    "Serve.gpus": "GPUs of one replica; 0 serves on the CPU.",
    "Replicas.min": "Copies that are always there.",
    "Replicas.max": "Copies at most.",
    "WandB.project": "Project in W&B.",
    "WandB.entity": "Team or user in W&B; null: the key's own.",
    "WandB.tags": "Tags of the run in W&B.",
}
"""For the fields whose name says enough beside their type in the code, but not to a reader of the manual."""


_MERGED = ("Data", "Languages", "Train")
"""Sections that a file may complete of the one that it extends: what they require is required of the whole alone."""


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a job *file*: `extends` is allowed, and one that has it may leave out any key.

    Stricter than the reader in one thing: a null that removes what an extended file says is not foreseen.
    """
    made = _job_schema()
    definitions: dict[str, dict[str, Any]] = made["$defs"]
    required = {name: {"required": definitions[name].pop("required", [])} for name in _MERGED}
    cleaning = {"properties": {"clean": {"properties": {"language": required["Languages"]}}}}
    origin = {"anyOf": [{"required": ["sources"]}, {"required": ["datasets"]}]}
    whole = {
        "required": made.pop("required"),
        "properties": {"data": {**origin, **cleaning}, "train": required["Train"]},
    }
    for name, definition in [*definitions.items(), ("JobSpec", made)]:
        definition.pop("title", None)
        for key, field in definition["properties"].items():
            definition["properties"][key] = _for_editors(field, _MEANINGS.get(f"{name}.{key}"))
    made["properties"] = {"extends": _EXTENDS, **made["properties"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Slipway job file",
        **made,
        "if": {"not": {"required": ["extends"]}},
        "then": whole,
    }


def _job_schema() -> dict[str, Any]:
    """What pydantic makes of the models, and what their validators take besides."""
    made = JobSpec.model_json_schema()
    against = made["$defs"]["Deduplicate"]["properties"]["against"]
    against["items"] = {"anyOf": [{"type": "string", "minLength": 1}, against["items"]]}
    return made


def _for_editors(field: dict[str, Any], meaning: str | None) -> dict[str, Any]:
    """A field with its meaning, without what its section says anyway, and with the other spellings of on and off."""
    field = {key: value for key, value in field.items() if key != "title"}
    if meaning:
        field.setdefault("description", meaning)
    if _section_of(field) is not None and isinstance(field.get("default"), dict):
        del field["default"]  # each key of the section has its own
    return _with_switches(field)


def _with_switches(field: dict[str, Any]) -> dict[str, Any]:
    """YAML 1.1 reads a bare `off` as false and `on` as true, YAML 1.2 as text: whatever takes one takes the other."""
    if "off" in field.get("enum", [field.get("const")]):
        values = field.get("enum", ["off"])
        rest = {key: value for key, value in field.items() if key not in ("type", "const")}
        return {**rest, "enum": [*values, False]}
    if "anyOf" not in field:
        return field
    branches = [_with_switches(one) for one in field["anyOf"]]
    if branches == [{"type": "boolean"}, {"type": "null"}]:
        branches.insert(1, {"enum": ["on", "off"]})
    if _section_of(field) is not None and {"enum": ["off", False]} in branches:
        branches.append({"const": True})  # the section with its defaults
    return {**field, "anyOf": branches}


def markdown() -> str:
    """The tables of the manual: one for each section of a job, each key with type, default and meaning.

    Raises:
        LookupError: a key has no meaning; give its field a docstring in the code.
    """
    whole = _job_schema()
    return "\n".join(_sections("JobSpec", whole, whole["$defs"], path=""))


def with_tables(document: str) -> str:
    """A document with the tables between its markers replaced by those of now.

    Raises:
        LookupError: it does not have both markers.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise LookupError(f"the document lacks the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{markdown()}\n{END}{after}"


def _sections(name: str, section: dict[str, Any], definitions: dict[str, Any], *, path: str) -> Iterator[str]:
    """A section's table, then those of the sections in it."""
    inner: list[tuple[str, str]] = []
    rows = []
    for key, field in section["properties"].items():
        child = _section_of(field) or _section_of(field.get("items", {}))
        if child is not None:
            inner.append((child, f"{path}{key}" + ("[]" if "items" in field else "")))
            if "$ref" in field:  # it is always there: its own table says all
                continue
        rows.append(_row(name, key, field, required=key in section.get("required", [])))
    if rows:
        yield f"### `{path.removesuffix('.')}`\n\n{section['description']}\n" if path else "### At the top\n"
        yield "| key | type | default | meaning |"
        yield "|---|---|---|---|"
        yield from rows
        yield ""
    for child, where in inner:
        yield from _sections(child, definitions[child], definitions, path=f"{where}.")


def _row(section: str, key: str, field: dict[str, Any], *, required: bool) -> str:
    meaning = field.get("description") or _MEANINGS.get(f"{section}.{key}")
    if not meaning:
        raise LookupError(f"{section}.{key} has no meaning: give the field a docstring in the code")
    default = "required" if required else _default(field)
    cells = (f"`{key}`", _type(field), default, " ".join(meaning.split()))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(field: dict[str, Any]) -> str:
    """A type as people read it: `integer >= 1 or null`."""
    if "anyOf" in field:
        return " or ".join(_type(one) for one in field["anyOf"])
    if "$ref" in field:
        return "mapping (see below)"
    if "enum" in field or "const" in field:
        values = [_value(value) for value in field.get("enum", [field.get("const")])]
        return " or ".join([", ".join(values[:-1]), values[-1]] if len(values) > 2 else values)
    if field["type"] == "array":
        return f"list of {_type(field['items'])}"
    if field["type"] == "object":
        values = field["additionalProperties"]
        return f"mapping of names to {'values' if values is True else _type(values)}"
    words = {"string": "text", "boolean": "`true` or `false`", "null": "null"}
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[bound]:,.10g}" for bound, sign in bounds.items() if bound in field]
    return " ".join([words.get(field["type"], field["type"]), ", ".join(limits)]).strip()


def _default(field: dict[str, Any]) -> str:
    if _section_of(field) is not None and isinstance(field["default"], dict):
        return "see below"
    if field["default"] and field["default"] == field.get("items", {}).get("enum"):
        return "all"
    return _value(field["default"])


def _value(value: Any) -> str:
    """A value as it stands in a job file."""
    return f"`{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}`"


def _section_of(field: dict[str, Any]) -> str | None:
    """The section that a field holds, or may hold."""
    targets = [one["$ref"] for one in (field, *field.get("anyOf", [])) if "$ref" in one]
    return str(targets[0]).rpartition("/")[2] if targets else None


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.job_schema", description=__doc__.split("\n")[0])
    parser.add_argument("--markdown", action="store_true", help="print the tables of the manual instead of the schema")
    parser.add_argument("--into", type=Path, metavar="FILE", help="replace the tables between the markers of a file")
    asked = parser.parse_args()
    if asked.into:
        asked.into.write_text(with_tables(asked.into.read_text(encoding="utf-8")), encoding="utf-8")
        return
    sys.stdout.write(markdown() if asked.markdown else json.dumps(schema(), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
