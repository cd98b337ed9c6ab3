"""A run as W&B has it. The one home of wandb, within `wandb_process`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import wandb
from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

from orchestrator.track import metric_log
from orchestrator.track.metrics import STEP
from orchestrator.track.wandb_file import read_records

_INIT_LIMIT_S = 20.0
_FINISH_LIMIT_S = 20.0
_MOST_CLASSES = 100
"""Of a confusion matrix that is drawn: W&B's own plots hold 10,000 cells."""
_LONGEST_TITLE = 63
"""Of an alert: W&B's own limit."""

Message = Mapping[str, Any]


class View:
    """Begun when it is made; each step once."""

    def __init__(self, begin: Message, say: Callable[[str], None]) -> None:
        self._begin = begin
        self._say = say
        self._folder = Path(begin["folder"])
        self._said = False
        self._follows = False
        self._lines = self._folder / metric_log.FILE
        self._seen_bytes = 0
        self._run: Any = None
        try:
            self._open(begin["mode"])
        except Exception as error:  # noqa: BLE001 - W&B may fail in any way
            self._go_offline(error)

    def do(self, message: Message) -> None:
        """One message. Raises what W&B raises where it fails offline, too."""
        work: Callable[[Message], Any] = {
            "follow": self._follow,
            "look": lambda m: self._send_lines(length=m["bytes"]),
            "table": self._table,
            "used_dataset": self._used_dataset,
            "made_export": self._made_export,
            "summarize": lambda m: self._run.summary.update(m["facts"]),
            "alert": lambda m: self._run.alert(title=m["title"][:_LONGEST_TITLE], text=m["text"], level="ERROR"),
        }[message["do"]]
        try:
            work(message)
        except Exception as error:  # noqa: BLE001 - as above
            self._go_offline(error)
            work(message)

    def look(self, *, length: int | None = None) -> None:
        """Send the lines that were there at the last look, or so many bytes of them, if a message said to follow them.

        A look late, because the table of a step goes before its line, and is told of by another way.
        """
        if self._follows:
            seen, self._seen_bytes = self._seen_bytes, self._lines.stat().st_size if self._lines.is_file() else 0
            self.do({"do": "look", "bytes": seen if length is None else length})

    def finish(self, *, failed: bool) -> None:
        """Send what is left, within W&B's own limit."""
        self._run.finish(exit_code=int(failed))
        wandb.teardown()

    def _go_offline(self, error: Exception) -> None:
        """Once. The lines that W&B's files lack are read from `metrics.jsonl` again."""
        if self._said:
            raise error
        self._said = True
        what = " ".join(str(error).split()) or type(error).__name__
        self._say(
            f"W&B failed ({what[:300]}); training goes on, and what W&B lacks is kept in {self._folder / 'wandb'}"
        )
        with contextlib.suppress(Exception, SystemExit):  # of W&B's own process that has died, it takes the exit code
            wandb.teardown()
        self._open("offline")

    def _open(self, mode: str) -> None:
        begin = self._begin
        self._run = wandb.init(
            project=begin["project"],
            entity=begin["entity"],
            id=begin["id"],
            name=begin["name"],
            dir=begin["folder"],
            config=begin["config"],
            tags=begin["tags"] or None,
            mode=mode,  # type: ignore[arg-type]
            resume="allow",
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=_INIT_LIMIT_S,
                finish_timeout=_FINISH_LIMIT_S,
                disable_git=True,
                stop_fn=lambda: None,  # nobody but the run's owner stops a training
            ),
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        self._position = 0
        # Online W&B says itself what it has; offline its files do.
        known = self._run.starting_step - 1 if mode == "online" else last_step(self._folder / "wandb")
        self._known_step = self._logged_step = max(0, known)

    def _follow(self, _: Message) -> None:
        """From now on."""
        self._follows = True

    def _send_lines(self, *, length: int | None = None, before: int | None = None) -> None:
        if not self._lines.is_file():
            return
        with self._lines.open("rb") as file:
            file.seek(self._position)
            for raw in file:
                line = metric_log.parse_line(raw)
                if line is None or (length is not None and self._position + len(raw) > length):
                    return
                if before is not None and line[STEP] >= before:
                    return
                if line[STEP] > self._logged_step:
                    self._run.log(line, step=line[STEP], commit=True)
                    self._logged_step = line[STEP]
                self._position += len(raw)

    def _table(self, message: Message) -> None:
        columns, rows, step = message["columns"], message["rows"], message["step"]
        self._send_lines(before=step)
        if step <= self._known_step:  # an attempt before has sent it
            return
        put = {f"tables/{message['name']}": wandb.Table(columns=columns, data=rows, allow_mixed_types=True)}
        if message["name"] == "confusion" and len(rows) <= _MOST_CLASSES:
            put["charts/confusion"] = _confusion_chart(columns[1:], rows)
        # W&B takes steps in their order alone: what comes after its own line goes with the next one.
        self._run.log({STEP: step, **put}, step=max(step, self._logged_step + 1))

    def _used_dataset(self, message: Message) -> None:
        # The public call refuses to work offline, and waits for the server online; this is what it does first.
        artifact = _artifact(Path(message["path"]), "dataset", message["facts"])
        self._run._log_artifact(artifact, is_user_created=True, use_after_commit=True)

    def _made_export(self, message: Message) -> None:
        path = Path(message["path"])
        self._run.log_artifact(_artifact(path, "model", message["facts"]), aliases=["latest", path.name])


def last_step(folder: Path) -> int:
    """The last step in the newest of W&B's own files that has one; 0 without."""
    files = folder.glob("*run-*/run-*.wandb")
    for path in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        last = 0
        for raw in read_records(path):
            record = Record.FromString(raw)
            if record.WhichOneof("record_type") == "history":
                last = max(last, record.history.step.num)
        if last:
            return last
    return 0


def _artifact(path: Path, kind: str, facts: Mapping[str, Any]) -> Any:
    """A folder of the store as its manifest: names, sizes and checksums; the files themselves stay where they are."""
    name = path.name if kind == "dataset" else f"{path.parent.parent.name}-export"
    artifact = wandb.Artifact(name, type=kind, metadata={**facts, "path": f"{path.parent.name}/{path.name}"})
    # Immutable: else W&B copies it to a place of its own below the user's home, and leaves it there.
    artifact.add_file(str(path / "manifest.json"), policy="immutable")
    return artifact


def _confusion_chart(predicted: list[str], rows: list[list[Any]]) -> Any:
    """W&B's plot of a confusion matrix; its own function would want a pair of classes for every sample."""
    cells = [[row[0], label, count] for row in rows for label, count in zip(predicted, row[1:], strict=True)]
    columns: list[str | int] = ["Actual", "Predicted", "nPredictions"]
    return wandb.plot_table(
        vega_spec_name="wandb/confusion_matrix/v1",
        data_table=wandb.Table(columns=columns, data=cells),
        fields={str(column): column for column in columns},
        string_fields={"title": "confusion"},
    )
