"""What a dataset says of itself: `manifest.json` for programs, `report.json` for who decides whether to train on it.

All of it is a function of sources and settings: no times, no machine, so that the same input gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.data import splits as split_rules
from orchestrator.data.ledger import Origin
from orchestrator.data.passes.read import SAMPLES
from orchestrator.data.passes.sift import CONTAMINATED, EXACT, NEAR, PRIVATE
from orchestrator.data.sources.listing import Listing, describe
from orchestrator.data.sources.rows import Part
from orchestrator.data.tokens.facts import TokenizerFacts
from orchestrator.job_data import Data
from orchestrator.store import write_json

Result = dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """The results of all passes, a result a unit."""

    data: Data
    listing: Listing
    units: list[list[Part]]
    origins: list[list[Origin]]
    reads: list[Result]
    sifts: list[Result]
    tokenised: list[Result]
    tokenizer: TokenizerFacts
    labels: list[str]

    @property
    def splits(self) -> list[str]:
        """The splits there are: those asked for, and those that sources name."""
        found = {name for t in self.tokenised for name in t["shards"]}
        asked = set(split_rules.asked_for(self.data.split)) | found
        return [name for name in (split_rules.TRAIN, split_rules.VALIDATION, split_rules.TEST) if name in asked]

    def source_of(self, unit: int) -> int:
        """The source that a unit is of."""
        return self.units[unit][0].file.source


def manifest_facts(findings: Findings) -> Result:
    """What a loader, an export and `prepare --json` need to know."""
    splits = _splits(findings)
    known = findings.tokenizer
    return {
        "kind": findings.data.kind,
        "tokenizer": asdict(known),
        "vocab_size": known.vocab_size,
        "eos_token": known.eos_token,
        "eos_token_id": known.eos_token_id,
        "labels": findings.labels,
        "splits": splits,
        "sources": {
            "names": findings.data.part_names,
            "files": len(findings.listing.files),
            "bytes": sum(f.size_bytes for f in findings.listing.files),
        },
        "counts": counts(findings),
        "settings": findings.data.model_dump(mode="json"),
    }


def _splits(findings: Findings) -> Result:
    """Per split its shards in stream order, and their sums."""
    splits: Result = {}
    for name in findings.splits:
        rows = []
        for unit, result in enumerate(findings.tokenised):
            for shard in result["shards"].get(name, []):
                rows.append({**shard, "path": f"shards/{shard['path']}", "source": findings.source_of(unit)})
        splits[name] = {
            "tokens": sum(r["tokens"] for r in rows),
            "documents": sum(r["documents"] for r in rows),
            "shards": rows,
        }
    return splits


def counts(findings: Findings) -> Result:
    """Documents read and removed, by what removed them: quality, exact, near, contaminated, personal data."""
    removed = _merged(findings.sifts, "removed")
    quality = sum(documents for documents, _ in _merged(findings.reads, "removed").values())

    def of(state: str) -> int:
        return int(removed.get(state, [0, 0])[0])

    personal: dict[str, int] = {}
    for sift in findings.sifts:
        for kind, count in sift["personal"].items():
            personal[kind] = personal.get(kind, 0) + count
    return {
        "read": sum(r["documents"] for r in findings.reads),
        "documents": sum(s["count"] for s in findings.sifts),
        "removed": {
            "quality": quality,
            "exact_duplicates": of(EXACT),
            "near_duplicates": of(NEAR),
            "contaminated": of(CONTAMINATED),
            "personal_data": of(PRIVATE),
        },
        "personal_data": {kind: personal.get(kind, 0) for kind in findings.data.privacy.kinds}
        if findings.data.privacy.action != "off"
        else {},
        "rejected": sum(r["rejected_count"] for r in findings.reads) + len(findings.listing.refused),
    }


def _merged(results: Iterable[Result], key: str) -> dict[str, list[int]]:
    """Sums of [documents, bytes] by rule over units."""
    merged: dict[str, list[int]] = {}
    for result in results:
        for rule, (documents, size_bytes) in result[key].items():
            own = merged.setdefault(rule, [0, 0])
            own[0] += documents
            own[1] += size_bytes
    return dict(sorted(merged.items()))


def write_report(folder: Path, findings: Findings) -> None:
    """`report.json`, `rejected.jsonl` and `sources.json`."""
    write_json(folder / "report.json", report(findings))
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in _rejected(findings))
    (folder / "rejected.jsonl").write_text("".join(lines), encoding="utf-8")
    files = _files(findings)
    write_json(folder / "sources.json", {"files": list(files)})


def report(findings: Findings) -> Result:
    """What one asks before spending GPU-weeks on this data."""
    splits = _splits(findings)
    tokens = sum(s["tokens"] for s in splits.values())
    text_bytes = sum(sum(t["text_bytes"].values()) for t in findings.tokenised)
    found = counts(findings)
    return {
        "files": len(findings.listing.files),
        "documents": found["documents"],
        "documents_read": found["read"],
        "text_bytes_read": sum(r["text_bytes"] for r in findings.reads),
        "text_bytes": text_bytes,
        "tokens": tokens,
        "bytes_per_token": round(text_bytes / max(1, tokens), 4),
        "splits": {name: {k: s[k] for k in ("tokens", "documents")} for name, s in splits.items()},
        "sources": _sources(findings, splits),
        "removed": found["removed"],
        "removed_by_rule": {
            rule: {"documents": documents, "bytes": size_bytes, "samples": _samples(findings, rule)}
            for rule, (documents, size_bytes) in (
                _merged(findings.reads, "removed") | _merged(findings.sifts, "removed")
            ).items()
        },
        "mended_by_rule": {
            rule: {"documents": documents, "bytes": size_bytes}
            for rule, (documents, size_bytes) in _merged(findings.reads, "mended").items()
        },
        "personal_data": {
            "found": found["personal_data"],
            "documents": sum(s["with_personal"] for s in findings.sifts),
            "shards": {
                r["path"]: r["personal_data"] for s in splits.values() for r in s["shards"] if "personal_data" in r
            },
        },
        "length_tokens": _lengths(findings),
        "tokenizer": {"vocab_size": findings.tokenizer.vocab_size, "sha256": findings.tokenizer.sha256},
        "labels": findings.labels,
        "rejected": {"count": found["rejected"], "by_reason": _reasons(findings)},
    }


def _sources(findings: Findings, splits: Result) -> list[Result]:
    rows = []
    for number, name in enumerate(findings.data.part_names):
        units = [i for i in range(len(findings.units)) if findings.source_of(i) == number]
        own = [r for s in splits.values() for r in s["shards"] if r["source"] == number]
        source = findings.data.sources[number]
        rows.append(
            {
                "name": name,
                "path": describe(source),
                "weight": source.weight,
                "files": sum(f.source == number for f in findings.listing.files),
                "bytes": sum(f.size_bytes for f in findings.listing.files if f.source == number),
                "documents_read": sum(findings.reads[i]["documents"] for i in units),
                "documents": sum(findings.sifts[i]["count"] for i in units),
                "rejected": sum(findings.reads[i]["rejected_count"] for i in units),
                "tokens": sum(r["tokens"] for r in own),
                "train_tokens": sum(r["tokens"] for r in splits[split_rules.TRAIN]["shards"] if r["source"] == number),
            }
        )
    return rows


def _samples(findings: Findings, rule: str) -> list[Result]:
    """The first few documents that a rule removed, with where they stand."""
    found: list[Result] = []
    for unit, (read, sift) in enumerate(zip(findings.reads, findings.sifts, strict=True)):
        for one in [*read["samples"].get(rule, []), *sift["samples"].get(rule, [])]:
            origin = findings.origins[unit][one["part"]]
            rest = {k: v for k, v in one.items() if k not in ("part", "row")}
            found.append({"file": origin.file, "row": one["row"] + origin.base_row, **rest})
        if len(found) >= SAMPLES:
            break
    return found[:SAMPLES]


def _lengths(findings: Findings) -> Result:
    """Documents by length: {split: {"longest": tokens, "histogram": [[from, up to, documents], ...]}}."""
    lengths: Result = {}
    for name in findings.splits:
        sums: list[int] = []
        longest = 0
        for result in findings.tokenised:
            own = result["lengths"].get(name, [])
            sums = [a + b for a, b in zip(sums or [0] * len(own), own, strict=True)] if own else sums
            longest = max(longest, result["longest"].get(name, 0))
        bins = [[1 << i, (2 << i) - 1, count] for i, count in enumerate(sums) if count]
        lengths[name] = {"longest": longest, "histogram": bins}
    return lengths


def _rejected(findings: Findings) -> Iterator[Result]:
    for refused in findings.listing.refused:
        yield {"file": refused.file, "row": None, "reason": refused.reason}
    for unit, result in enumerate(findings.reads):
        for one in result["rejected"]:
            origin = findings.origins[unit][one["part"]]
            row = None if one["row"] is None else one["row"] + origin.base_row
            yield {"file": origin.file, "row": row, "reason": one["reason"]}


def _reasons(findings: Findings) -> dict[str, int]:
    """How often each kind of reason; numbers and names in it make no difference."""
    reasons: dict[str, int] = {}
    for row in _rejected(findings):
        kind = row["reason"].split(":")[0].split(" at byte")[0][:80]
        reasons[kind] = reasons.get(kind, 0) + 1
    return dict(sorted(reasons.items()))


def _files(findings: Findings) -> Iterator[Result]:
    for unit, result in zip(findings.units, findings.reads, strict=True):
        for part, digest in zip(unit, result["file_sha256"], strict=True):
            if part.start == 0:
                yield {"path": part.file.relative, "bytes": part.file.size_bytes, "sha256": digest}
