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
    "Data.sources": "Where the text comes from; at least one.",
    "Split.validation": "Share of the documents for the validation loss; 0: none is measured.",
    "Split.test": "Share of the documents that neither training nor validation sees.",
    "Model.kind": "A decoder with RoPE, RMSNorm, SwiGLU and grouped-query attention.",
    "Model.layers": "Blocks of attention and SwiGLU.",
    "Model.width": "Numbers in the vector of a token; a multiple of `heads`.",
    "Model.heads": "Attention heads; `width / heads` is even.",
    "Model.dropout": "Share of activations dropped in training: embeddings, attention, both residual branches.",
    "Model.rope_theta": "Base of the rotary angles.",
    "Model.norm_eps": "Added to the mean square in RMSNorm.",
    "Model.tie_embeddings": "Use the token table as output projection too.",
    "Train.objective": "Predict each next token.",
    "Train.steps": "Optimizer steps of the whole run.",
    "Train.precision": "`bf16`: weights in bf16 beside fp32 master weights; at ZeRO stage 0, fp32 under autocast.",
    "Train.seed": "Of the weights, the order of the samples, and dropout.",
    "Optimizer.learning_rate": "The highest, reached at the end of the warm-up.",
    "Optimizer.weight_decay": "Decoupled; on matrices only.",
    "Optimizer.beta1": "Decay of the mean of gradients.",
    "Optimizer.beta2": "Decay of the mean of their squares.",
    "Optimizer.eps": "Added to the denominator.",
    "Optimizer.name": "AdamW.",
    "Schedule.name": "What follows the warm-up.",
    "Schedule.warmup_steps": "Steps in which the rate rises from 0; a run that is shorter ends on the way up.",
    "Workers.min": "With fewer that fit, the job is refused (exit 4).",
    "Workers.max": "Never more than these; where only `min` is given, the same number.",
    "Workers.gpus": "GPUs of one worker; 0 trains on the CPU.",
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


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a job *file*: `extends` is allowed, and one that has it may leave out any key.

    Stricter than the reader in one thing: a null that removes what an extended file says is not foreseen.
    """
    made = JobSpec.model_json_schema()
    definitions: dict[str, dict[str, Any]] = made["$defs"]
    required = {name: definitions[name].pop("required", []) for name in ("Data", "Train")}
    whole = {
        "required": made.pop("required"),
        "properties": {"data": {"required": required["Data"]}, "train": {"required": required["Train"]}},
    }
    for name, definition in [*definitions.items(), ("JobSpec", made)]:
        definition.pop("title", None)
        for key, field in definition["properties"].items():
            field.pop("title", None)
            if meaning := _MEANINGS.get(f"{name}.{key}"):
                field.setdefault("description", meaning)
    made["properties"] = {"extends": _EXTENDS, **made["properties"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Slipway job file",
        **made,
        "if": {"not": {"required": ["extends"]}},
        "then": whole,
    }


def markdown() -> str:
    """The tables of the manual: one for each section of a job, each key with type, default and meaning.

    Raises:
        LookupError: a key has no meaning; give its field a docstring in `job.py`.
    """
    whole = JobSpec.model_json_schema()
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
        child = _reference(field) or _reference(field.get("items", {}))
        if child is not None:
            inner.append((child, f"{path}{key}" + ("[]" if "items" in field else "")))
            if "items" not in field:
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
        raise LookupError(f"{section}.{key} has no meaning: give the field a docstring in job.py")
    default = "required" if required else _value(field["default"])
    cells = (f"`{key}`", _type(field), default, " ".join(meaning.split()))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(field: dict[str, Any]) -> str:
    """A type as people read it: `integer >= 1 or null`."""
    if "anyOf" in field:
        return " or ".join(_type(one) for one in field["anyOf"])
    if _reference(field) is not None:
        return "mapping, see below"
    if "enum" in field or "const" in field:
        return " or ".join(_value(value) for value in field.get("enum", [field.get("const")]))
    if field["type"] == "array":
        return f"list of {_type(field['items'])}"
    words = {"string": "text", "boolean": "`true` or `false`", "null": "null"}
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[bound]:,.10g}" for bound, sign in bounds.items() if bound in field]
    return " ".join([words.get(field["type"], field["type"]), ", ".join(limits)]).strip()


def _value(value: Any) -> str:
    """A value as it stands in a job file."""
    return f"`{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}`"


def _reference(field: dict[str, Any]) -> str | None:
    """The section that a field holds, if it holds one."""
    target = field.get("$ref")
    return target.rpartition("/")[2] if isinstance(target, str) else None


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
