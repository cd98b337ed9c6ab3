"""The stage: sources -> clean documents -> no duplicates -> no personal data -> tokenizer -> Arrow shards.

Decisions are made here, the work is done by tasks on the cluster (`passes/`). The result does not depend on how many
run at once, on which nodes, or on what was killed in between: units of work are cut by sizes alone, results are taken
in the order of units, and what a unit writes is a function of its input.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.data import splits as split_rules
from orchestrator.data.dataset import FORMAT, Dataset, open_dataset
from orchestrator.data.documents import read_documents
from orchestrator.data.ledger import Origin
from orchestrator.data.mixing import mix_datasets
from orchestrator.data.passes.duplicates import Removals, find_exact, find_near
from orchestrator.data.passes.read import read_unit
from orchestrator.data.passes.sift import NGRAMS, Sifting, index_evaluations, sift_unit, split_digest
from orchestrator.data.passes.tokenise import LEDGER, Tokenising, tokenise_unit, train_unit
from orchestrator.data.refine.clean import Cleaner
from orchestrator.data.report import Findings, manifest_facts, write_report
from orchestrator.data.sources.listing import Listing, require_files, resolve_path
from orchestrator.data.sources.rows import Part
from orchestrator.data.splits import Documents, SplitDecision
from orchestrator.data.tokens.facts import TokenizerFacts, facts, read_given
from orchestrator.data.units import cut_into_units, first_rows
from orchestrator.data.work import Work, sweep_abandoned, work_folder
from orchestrator.errors import DataError
from orchestrator.job import JobSpec
from orchestrator.job_data import Data
from orchestrator.job_file import environment
from orchestrator.plan import require_vocabulary
from orchestrator.store import Store, commit, is_committed, lock, storage_errors, sweep, write_json, writing
from orchestrator.track.progress import say

_NAMED = 3


def prepare(job: JobSpec, store: Store, *, listing: Listing, identity: str, connect: Callable[[], object]) -> Dataset:
    """The dataset of a job: reused where it is in the store, else made. `connect` is called if Ray is needed.

    Raises:
        DataError: no file matches, nothing readable is left, or more rows than data.max_rejected are bad.
        StoreError: another process writes it, or the disk is full.
    """
    final = store.dataset(job.name, identity)
    if is_committed(final):
        return open_dataset(final)
    if job.data.sources:
        require_files(listing)
    alone = lock(store.datasets / f".{identity}.lock", holds=f"the dataset {final.name}")
    with storage_errors(final, doing=f"writing the dataset {final.name}"), alone:
        if is_committed(final):
            return open_dataset(final)
        sweep(store.datasets, final.name)
        if job.data.datasets:
            mix_datasets(job, store, final, identity)
            return open_dataset(final)
        sweep_abandoned(store.datasets, job.name, identity)
        Cleaner(job.data.clean)  # settings that cannot be are refused before anything starts
        connect()
        began_at = time.monotonic()
        work = Work(work_folder(store.datasets, job.name, identity))
        work.folder.mkdir(parents=True, exist_ok=True)
        made = _Preparation(job, listing, work).run()
        _publish(made, final, identity)
        _note_timing(store, final, work, made, seconds=time.monotonic() - began_at)
        shutil.rmtree(work.folder, ignore_errors=True)
    return open_dataset(final, verify=False)


@dataclass
class _Made:
    """What is to be published."""

    job: JobSpec
    findings: Findings
    tokenizer: str
    facts: TokenizerFacts
    files: list[tuple[Path, str]]
    """Finished files, and their names in the dataset."""


@dataclass
class _Preparation:
    """The passes, in order, over the units of one listing."""

    job: JobSpec
    listing: Listing
    work: Work
    units: list[list[Part]] = field(init=False)

    def __post_init__(self) -> None:
        self.units = cut_into_units(self.listing.files, self.data)

    @property
    def data(self) -> Data:
        """The settings."""
        return self.job.data

    def run(self) -> _Made:
        """From files to shards."""
        if (self.work.folder / "read").exists():
            say(f"an interrupted preparation of {self.job.name} is here: it goes on")
        reads = self._read()
        counts = [r["count"] for r in reads]
        exact, near = self._find_duplicates(counts)
        sifts = self._sift(counts, exact, near)
        self._require_documents(reads, sifts)
        decision = self._split(sifts)
        labels = self._labels(sifts)
        text, known = self._tokenizer(decision)
        require_vocabulary(self.job, known.vocab_size)
        bases = first_rows(self.units, [r["part_rows"] for r in reads])
        origins = [
            [Origin(p.file.source, p.file.relative, base) for p, base in zip(unit, own, strict=True)]
            for unit, own in zip(self.units, bases, strict=True)
        ]
        settings = Tokenising(self.data, decision, text, known, labels)
        inputs = [(i, self.work.unit("sift", i), own, settings) for i, own in enumerate(origins)]
        tokenised = self.work.run("tokenise", tokenise_unit, inputs)
        findings = Findings(self.data, self.listing, self.units, origins, reads, sifts, tokenised, known, labels)
        return _Made(self.job, findings, text, known, self._shard_files(tokenised))

    def _read(self) -> list[dict[str, Any]]:
        refused = len(self.listing.refused)
        rejected = refused

        def check(number: int, result: dict[str, Any]) -> None:
            nonlocal rejected
            rejected += result["rejected_count"]
            if rejected > self.data.max_rejected:
                named = [str(r) for r in self.listing.refused[:_NAMED]] + list(self._named(number, result))
                raise DataError(
                    f"{rejected} rows or files hold no document, over data.max_rejected {self.data.max_rejected}: "
                    + ", ".join(named[:_NAMED]),
                    fix="mend or exclude them, or raise data.max_rejected",
                )

        if refused > self.data.max_rejected:
            check(0, {"rejected_count": 0, "rejected": []})
        known = self._given_tokenizer()[1] if self.data.tokenizer.path else None
        inputs = [(unit, self.data, known) for unit in self.units]

        def stale(result: dict[str, Any]) -> bool:  # of an attempt that was to name fewer
            return bool(len(result["rejected"]) < min(result["rejected_count"], self.data.max_rejected + 1))

        reads = self.work.run("read", read_unit, inputs, check=check, stale=stale)
        if rejected:
            named = [str(r) for r in self.listing.refused]
            for i, result in enumerate(reads):
                named += self._named(i, result)
            say(f"rejected {rejected} rows or files: {', '.join(named[:_NAMED])}{', ...' if rejected > _NAMED else ''}")
        return reads

    def _named(self, number: int, result: dict[str, Any]) -> Iterable[str]:
        for one in result["rejected"]:
            part = self.units[number][one["part"]]
            row = "" if one["row"] is None else f":{one['row']}"
            if row and part.start and part.file.format != "text":
                row = f", row {one['row']} behind byte {part.start}"
            yield f"{part.file.relative}{row} ({one['reason']})"

    def _folders(self, name: str) -> list[Path]:
        return [self.work.unit(name, i) for i in range(len(self.units))]

    def _find_duplicates(self, counts: list[int]) -> tuple[Removals, Removals]:
        asked = self.data.deduplicate
        folders = self._folders("read")
        exact = find_exact(self.work, folders, counts) if asked.exact and sum(counts) > 1 else Removals.none()
        if asked.near == "off":
            return exact, Removals.none()
        return exact, find_near(self.work, folders, counts, near=asked.near, gone=exact)

    def _sift(self, counts: list[int], exact: Removals, near: Removals) -> list[dict[str, Any]]:
        for name, removals in (("exact.npy", exact), ("near.npy", near)):
            removals.save(self.work.folder / name)
        against = None
        if self.listing.against:
            self.work.run("evaluation sets", index_evaluations, [(self.listing, self.data)])
            against = self.work.unit("evaluation sets", 0) / NGRAMS
        starts = [0, *np.cumsum(counts)[:-1].tolist()]
        exact_path, near_path = self.work.folder / "exact.npy", self.work.folder / "near.npy"
        sifting = Sifting(self.data, exact_path, near_path, against, self._folders("read"), starts)
        return self.work.run("sift", sift_unit, [(i, sifting) for i in range(len(self.units))])

    def _require_documents(self, reads: list[dict[str, Any]], sifts: list[dict[str, Any]]) -> None:
        if any(s["count"] for s in sifts):
            return
        read, rejected = sum(r["documents"] for r in reads), sum(r["rejected_count"] for r in reads)
        named = [name for i, r in enumerate(reads) for name in self._named(i, r)][:_NAMED]
        raise DataError(
            f"no document is left of {read} that were read; {rejected} rows or files held none"
            + (f": {', '.join(named)}" if named else ""),
            fix="look at the sources, and at the limits under data.clean and data.deduplicate",
        )

    def _split(self, sifts: list[dict[str, Any]]) -> SplitDecision:
        """By hash; only where that leaves a split empty are all documents looked at."""
        asked = split_rules.asked_for(self.data.split)
        if not any(s["splits"].get(split_rules.TRAIN) for s in sifts) and all(s.split for s in self.listing.files):
            raise DataError(
                "every source names the validation or the test split: nothing is left to train on",
                fix="set data.sources split: train for one, or leave split out",
            )
        if all(any(s["splits"].get(name) for s in sifts) for name in asked):
            return SplitDecision(self.data.split)
        given = {s.split for s in self.data.sources if s.split} | {f.split for f in self.listing.files if f.split}
        missing = [name for name in asked if not any(s["splits"].get(name) for s in sifts)]
        if given and split_rules.TRAIN not in missing:
            return SplitDecision(self.data.split)  # the sources say which split they are
        sizes: dict[bytes, int] = {}
        for folder in self._folders("sift"):
            sizes.update((split_digest(d), len(d.text.encode())) for d in read_documents(folder) if not d.split)
        decision = split_rules.decide(Documents(sizes), self.data.split)
        if decision.cut is not None and self.data.kind != "text":
            raise DataError(
                f"{len(sizes)} row(s) are too few for the splits asked for: {', '.join(asked)}",
                fix="add rows, or set data.split.validation and data.split.test to 0",
            )
        return decision

    def _labels(self, sifts: list[dict[str, Any]]) -> list[str]:
        """Those of the job, else those that occur."""
        found = sorted({label for s in sifts for label in s["labels"]})
        return self.data.labels if self.data.labels is not None else found

    def _tokenizer(self, decision: SplitDecision) -> tuple[str, TokenizerFacts]:
        asked = self.data.tokenizer
        if asked.path:
            return self._given_tokenizer()
        inputs = [(self._folders("sift"), self.data, decision)]
        self.work.run("tokenizer", train_unit, inputs)
        text = (self.work.unit("tokenizer", 0) / "tokenizer.json").read_text(encoding="utf-8")
        return text, facts(text, chat_template=self._chat_template())

    def _given_tokenizer(self) -> tuple[str, TokenizerFacts]:
        given = read_given(Path(resolve_path(str(self.data.tokenizer.path), environment())))
        return given.text, given.facts(chat_template=self._chat_template())

    def _chat_template(self) -> str | None:
        """What the job asks for; chats of a tokenizer that is trained here are ChatML."""
        asked = self.data.tokenizer.chat_template
        if asked is None and (self.data.tokenizer.path or self.data.kind not in ("chat", "preference")):
            return None
        from orchestrator.data.tokens.chat import template_source

        return template_source(asked or "chatml", environment())

    def _shard_files(self, tokenised: list[dict[str, Any]]) -> list[tuple[Path, str]]:
        files = []
        for i, result in enumerate(tokenised):
            unit = self.work.unit("tokenise", i)
            files += [(unit / s["path"], f"shards/{s['path']}") for rows in result["shards"].values() for s in rows]
            files.append((unit / LEDGER, f"ledger/{i:05d}.arrow"))
        return files


def _publish(made: _Made, final: Path, identity: str) -> None:
    """Finished files become the dataset, or nothing does."""
    with writing(final) as folder:
        for name in ("shards", "ledger"):
            (folder / name).mkdir()
        for path, name in made.files:
            _link(path, folder / name)
        (folder / "tokenizer.json").write_text(made.tokenizer, encoding="utf-8")
        write_report(folder, made.findings)
        commit(
            folder, final, {"format": FORMAT, "name": made.job.name, "hash": identity, **manifest_facts(made.findings)}
        )


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _note_timing(store: Store, final: Path, work: Work, made: _Made, *, seconds: float) -> None:
    """How long it took, beside the dataset and never in it: the same input gives the same bytes."""
    tokens = sum(s["tokens"] for t in made.findings.tokenised for rows in t["shards"].values() for s in rows)
    encode_s = sum(t["cpu_s"] for t in made.findings.tokenised)
    timing: dict[str, Any] = {
        "seconds": round(seconds, 3),
        "passes": work.seconds,
        "resumed_units": work.resumed,
        "peak_task_bytes": work.peak_bytes,
        "tokenise_tokens_per_cpu_s": round(tokens / max(encode_s, 1e-9), 1),
    }
    if not work.resumed:  # else this attempt did only the rest
        timing["tokens_per_s"] = round(tokens / max(seconds, 1e-9), 1)
    write_json(store.datasets / f".{final.name}.timing.json", timing)
