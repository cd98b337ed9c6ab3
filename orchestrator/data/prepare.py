"""The stage: sources -> tokenizer -> Arrow shards. Reading and tokenising run on the cluster, decisions here.

The result does not depend on how many tasks run at once: files are cut into chunks by their sizes alone, and each
chunk gives its own shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from orchestrator.cluster.tasks import run_tasks
from orchestrator.data import splits as split_rules
from orchestrator.data.dataset import Dataset, open_dataset
from orchestrator.data.shards import write_shard
from orchestrator.data.sources.listing import Bad, Listing, SourceFile, read_documents, require_files, resolve_path
from orchestrator.data.splits import Documents, SplitDecision
from orchestrator.data.tokens import tokenizer as tokenizers
from orchestrator.errors import DataError
from orchestrator.job import JobSpec
from orchestrator.job_data import Data
from orchestrator.job_file import environment
from orchestrator.plan import require_vocabulary
from orchestrator.store import Store, commit, is_committed, lock, storage_errors, sweep, write_json, writing
from orchestrator.track.progress import bar, say

_CHUNK_MIN_BYTES = 1 << 20
_CHUNK_MAX_BYTES = 256 << 20
_CHUNKS_AIMED_AT = 32
_NAMED_IN_REPORT = 1000


@dataclass(frozen=True)
class Scan:
    """What one pass over a chunk found."""

    digests: list[bytes]
    sizes_bytes: list[int]
    file_sha256: list[str]
    bad: list[Bad]


@dataclass(frozen=True)
class Encoded:
    """The shards that a chunk gave: split -> (file name, tokens, documents)."""

    shards: dict[str, tuple[str, int, int]]


def prepare(job: JobSpec, store: Store, *, listing: Listing, identity: str, connect: Callable[[], object]) -> Dataset:
    """The dataset of a job: reused where it is in the store, else made. `connect` is called if Ray is needed.

    Raises:
        DataError: no file matches, nothing readable is left, or more rows than data.max_rejected are bad.
        StoreError: another process writes it, or the disk is full.
    """
    final = store.dataset(job.name, identity)
    if is_committed(final):
        return open_dataset(final)
    require_files(listing)
    alone = lock(store.datasets / f".{identity}.lock", holds=f"the dataset {final.name}")
    with storage_errors(final, doing=f"writing the dataset {final.name}"), alone:
        if is_committed(final):
            return open_dataset(final)
        sweep(store.datasets, final.name)
        connect()
        with writing(final) as folder:
            manifest = _make(job, listing.files, folder)
            commit(folder, final, {"format": 1, "name": job.name, "hash": identity, **manifest})
    return open_dataset(final, verify=False)


def _make(job: JobSpec, files: list[SourceFile], folder: Path) -> dict[str, Any]:
    """Scan, decide, train the tokenizer, encode; returns the manifest's facts."""
    chunks = cut_into_chunks(files)
    scans = _run("read", _scan_chunk, [(chunk, job.data) for chunk in chunks])
    bad = [b for scan in scans for b in scan.bad]
    _judge_bad(bad, job.data)
    decision = split_rules.decide(_distinct(scans), job.data.split)
    text = _tokenizer(job, chunks, scans, decision)
    known = tokenizers.facts(text)
    require_vocabulary(job, known.vocab_size)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    (folder / "shards").mkdir()
    tasks = [(chunk, job.data, decision, text, str(folder / "shards"), i) for i, chunk in enumerate(chunks)]
    encoded = _run("tokenise", _encode_chunk, tasks)
    splits = _collect_splits(encoded, split_rules.asked_for(job.data.split))
    _report(folder, files, scans, bad, splits)
    return {
        "tokenizer": asdict(known),
        "vocab_size": known.vocab_size,
        "eos_token": known.eos_token,
        "eos_token_id": known.eos_token_id,
        "splits": splits,
        "sources": {"files": len(files), "bytes": sum(f.size_bytes for f in files), "bad": len(bad)},
    }


def cut_into_chunks(files: list[SourceFile]) -> list[list[SourceFile]]:
    """Consecutive files, cut where their sizes say so: never where the number of workers would."""
    target = sum(f.size_bytes for f in files) // _CHUNKS_AIMED_AT
    target = min(_CHUNK_MAX_BYTES, max(_CHUNK_MIN_BYTES, target))
    chunks: list[list[SourceFile]] = [[]]
    held = 0
    for file in files:
        if chunks[-1] and held + file.size_bytes > target:
            chunks.append([])
            held = 0
        chunks[-1].append(file)
        held += file.size_bytes
    return chunks


def _run(title: str, function: Callable[..., Any], inputs: list[tuple[Any, ...]]) -> list[Any]:
    with bar(title, len(inputs), unit="chunks") as update:
        finished = 0

        def done(_: int) -> None:
            nonlocal finished
            finished += 1
            update(finished, "")

        return run_tasks(function, inputs, done=done)


def _documents(chunk: list[SourceFile], data: Data) -> Iterator[tuple[SourceFile, str | Bad]]:
    for file in chunk:
        for document in read_documents(file, data.sources[file.source]):
            yield file, document


def _scan_chunk(chunk: list[SourceFile], data: Data) -> Scan:
    scan = Scan([], [], [], [])
    for _, document in _documents(chunk, data):
        if isinstance(document, Bad):
            scan.bad.append(document)
            continue
        raw = document.encode()
        scan.digests.append(sha256(raw).digest())
        scan.sizes_bytes.append(len(raw))
    for file in chunk:
        try:
            scan.file_sha256.append(sha256(Path(file.path).read_bytes()).hexdigest())
        except OSError:
            scan.file_sha256.append("")
    return scan


def _distinct(scans: list[Scan]) -> Documents:
    sizes = {d: n for scan in scans for d, n in zip(scan.digests, scan.sizes_bytes, strict=True)}
    if not sizes:
        raise DataError("the sources hold no readable text", fix="look at the sources")
    return Documents(sizes)


def _judge_bad(bad: list[Bad], data: Data) -> None:
    if not bad:
        return
    named = ", ".join(f"{b.where} ({b.reason})" for b in bad[:5]) + (
        f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    )
    if len(bad) > data.max_rejected:
        raise DataError(
            f"{len(bad)} file(s) or line(s) hold no text: {named}",
            fix="mend or exclude them, or raise data.max_rejected",
        )
    say(f"skipped {len(bad)} file(s) or line(s): {named}")


def _tokenizer(job: JobSpec, chunks: list[list[SourceFile]], scans: list[Scan], decision: SplitDecision) -> str:
    asked = job.data.tokenizer
    if asked.path:
        return tokenizers.read_tokenizer(Path(resolve_path(asked.path, environment())))
    total = sum(sum(scan.sizes_bytes) for scan in scans)
    share = min(1.0, asked.sample_bytes / max(1, total))
    with bar("tokenizer", 1, unit="trained") as update:
        text: str = run_tasks(_train_tokenizer, [(chunks, job.data, decision, share)], done=lambda _: update(1, ""))[0]
    return text


def _train_tokenizer(chunks: list[list[SourceFile]], data: Data, decision: SplitDecision, share: float) -> str:
    """On a sample of the training split, chosen by content: the last 64 bits of the digest, as a number in [0, 1)."""

    def texts() -> Iterator[str]:
        for chunk in chunks:
            for _, document in _documents(chunk, data):
                if isinstance(document, Bad):
                    continue
                digest = sha256(document.encode()).digest()
                pieces = [text for name, text in decision.pieces(digest, document) if name == split_rules.TRAIN]
                if share >= 1.0 or digest == decision.cut or int.from_bytes(digest[-8:], "big") < share * 2**64:
                    yield from pieces

    return tokenizers.train_bpe(texts(), data.tokenizer.vocab_size)


def _encode_chunk(
    chunk: list[SourceFile], data: Data, decision: SplitDecision, tokenizer: str, folder: str, number: int
) -> Encoded:
    texts: dict[str, list[str]] = {}
    for _, document in _documents(chunk, data):
        if not isinstance(document, Bad):
            for name, piece in decision.pieces(sha256(document.encode()).digest(), document):
                texts.setdefault(name, []).append(piece)
    encoder = tokenizers.Encoder(tokenizer)
    shards = {}
    for name, documents in texts.items():
        file = f"{name}-{number:05d}.arrow"
        shards[name] = (file, *write_shard(Path(folder) / file, encoder.encode(documents)))
    return Encoded(shards)


def _collect_splits(encoded: list[Encoded], asked: list[str]) -> dict[str, Any]:
    splits = {}
    for name in asked:
        rows = [e.shards[name] for e in encoded if name in e.shards]
        splits[name] = {
            "tokens": sum(tokens for _, tokens, _ in rows),
            "documents": sum(documents for _, _, documents in rows),
            "shards": [{"path": f"shards/{f}", "tokens": t, "documents": d} for f, t, d in rows],
        }
    return splits


def _report(folder: Path, files: list[SourceFile], scans: list[Scan], bad: list[Bad], splits: dict[str, Any]) -> None:
    text_bytes = sum(sum(scan.sizes_bytes) for scan in scans)
    tokens = sum(split["tokens"] for split in splits.values())
    write_json(
        folder / "report.json",
        {
            "files": len(files),
            "documents": sum(len(scan.digests) for scan in scans),
            "text_bytes": text_bytes,
            "tokens": tokens,
            "bytes_per_token": round(text_bytes / max(1, tokens), 4),
            "splits": {name: {"tokens": s["tokens"], "documents": s["documents"]} for name, s in splits.items()},
            "bad": {"count": len(bad), "named": [asdict(b) for b in bad[:_NAMED_IN_REPORT]]},
        },
    )
    digests = [digest for scan in scans for digest in scan.file_sha256]
    rows = [{"path": f.relative, "bytes": f.size_bytes, "sha256": d} for f, d in zip(files, digests, strict=True)]
    write_json(folder / "sources.json", {"files": rows})
