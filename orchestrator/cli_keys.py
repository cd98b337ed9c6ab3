"""`slipway keys`, `usage`, `feedback`, `audit`: who may ask a service, what they used, and what they thought of it."""

from __future__ import annotations

import json
import re
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from orchestrator.cli_common import AsJson, print_document
from orchestrator.errors import DataError, JobError

if TYPE_CHECKING:
    from orchestrator.serve.accounts.database import Database

Url = Annotated[
    str | None,
    typer.Option(
        "--accounts",
        envvar="SLIPWAY_ACCOUNTS",
        metavar="URL",
        help="A SQLite file or postgresql://...; accounts.sqlite in the state folder by default.",
        show_envvar=True,
    ),
]
KeyId = Annotated[str, typer.Argument(metavar="ID", help="As `slipway keys list` shows it.")]
_MOST = 10**12
_SCOPES = typer.Option("--scopes", metavar="A,B", help="What for: generate, embed, admin.")
Scopes = Annotated[str, _SCOPES]
OtherScopes = Annotated[str | None, _SCOPES]
Rpm = Annotated[int | None, typer.Option("--rpm", min=1, max=_MOST, help="Requests in any 60 seconds.")]
Tpm = Annotated[int | None, typer.Option("--tpm", min=1, max=_MOST, help="Tokens in any 60 seconds, read and made.")]
Budget = Annotated[float | None, typer.Option("--budget", help="Money in all, by the service's price list.")]
Models = Annotated[str | None, typer.Option("--models", metavar="A,B", help="Which may be asked; others may not.")]
Expires = Annotated[str | None, typer.Option("--expires", metavar="30d|DATE", help="A time from now, or a day in UTC.")]
_SPAN = re.compile(r"(\d+)([smhdw])")
_SPAN_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

keys_app = typer.Typer(
    help="Who may ask a service. Without any key everybody on this machine may.", no_args_is_help=True
)
feedback_app = typer.Typer(help="What people thought of answers.", no_args_is_help=True)
audit_app = typer.Typer(help="The log of keys, rollouts and denied requests.", no_args_is_help=True)


@keys_app.command("create")
def create(
    name: Annotated[str, typer.Option("--name", help="For people: who will use it.")],
    scopes: Scopes = "generate,embed",
    rpm: Rpm = None,
    tpm: Tpm = None,
    budget: Budget = None,
    models: Models = None,
    expires: Expires = None,
    accounts: Url = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown this once: only its hash is kept.

    Example:  slipway keys create --name ana --rpm 60 --expires 30d
    """
    from orchestrator.serve.accounts import keys
    from orchestrator.serve.accounts.issuing import issue

    limits = _limits(scopes=scopes, models=models, budget=budget, expires=expires)
    key, secret = issue(_database(accounts), keys.NewKey(name=name, rpm=rpm, tpm=tpm, **limits))
    document = {"id": key.id, "key": secret}
    print_document(document, as_json, "keys.print_new_key")


@keys_app.command("update")
def update(
    key_id: KeyId,
    scopes: OtherScopes = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    budget: Budget = None,
    models: Models = None,
    expires: Expires = None,
    lift: Annotated[
        str, typer.Option("--lift", metavar="A,B", help="Limits to take away: models, rpm, tpm, budget, expires.")
    ] = "",
    accounts: Url = None,
    as_json: AsJson = False,
) -> None:
    """Give a key other limits, from the next request on; what is not named stays. Shows it as `list` does.

    Example:  slipway keys update key-0123456789ab --rpm 120 --lift budget
    """
    from orchestrator.serve.accounts import keys
    from orchestrator.serve.accounts.issuing import amend

    limits = _limits(scopes=scopes, models=models, budget=budget, expires=expires)
    lifted: Any = frozenset(_listed(lift))
    wanted = keys.Change(rpm=rpm, tpm=tpm, lifted=lifted, **limits)
    row = amend(_database(accounts), key_id, wanted).as_json()
    print_document(row, as_json, "keys.print_key")


@keys_app.command("list")
def list_(accounts: Url = None, as_json: AsJson = False) -> None:
    """All keys that ever were, with their limits.

    Example:  slipway keys list
    """
    from orchestrator.serve.accounts import keys

    with _database(accounts).reading() as session:
        rows = [key.as_json() for key in keys.every(session)]
    print_document({"keys": rows}, as_json, "keys.print_keys")


@keys_app.command("revoke")
def revoke(key_id: KeyId, accounts: Url = None, as_json: AsJson = False) -> None:
    """End a key, from the next request on. A service that runs needs no restart.

    Example:  slipway keys revoke key-0123456789ab
    """
    from orchestrator.serve.accounts.issuing import withdraw
    from orchestrator.serve.accounts.keys import utc

    key = withdraw(_database(accounts), key_id)
    print_document({"id": key.id, "name": key.name, "revoked": utc(key.revoked_at)}, as_json)


def usage(
    key: Annotated[str | None, typer.Option("--key", metavar="ID", help="Of this key alone.")] = None,
    day: Annotated[str | None, typer.Option("--day", metavar="YYYY-MM-DD", help="Of this day alone, in UTC.")] = None,
    accounts: Url = None,
    as_json: AsJson = False,
) -> None:
    """Requests, tokens and cost by key, model, version and day.

    Example:  slipway usage --day 2026-11-23
    """
    from orchestrator.serve.accounts import keys
    from orchestrator.serve.accounts.usage import total, used

    if day is not None:
        _day(day, option="--day")
    with _database(accounts).reading() as session:
        if key is not None and key not in {known.id for known in keys.every(session)}:
            raise keys.unknown_key(session, key)
        found = used(session, key_id=key, day=day)
    rows, sums = [asdict(row) for row in found], total(found)
    print_document({"usage": rows, "total": sums}, as_json, "keys.print_usage")


@feedback_app.command("list")
def given(
    last: Annotated[int, typer.Option("--last", min=1, max=_MOST, help="How many.")] = 50,
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Of this model alone.")] = None,
    rating: Annotated[
        Literal["up", "down"] | None, typer.Option("--rating", help="Of these thumbs alone; all ratings by default.")
    ] = None,
    accounts: Url = None,
    as_json: AsJson = False,
) -> None:
    """The newest feedback, oldest first: what was thought of which version, and why.

    Example:  slipway feedback list --rating down --last 20
    """
    from orchestrator.serve.accounts import feedback

    with _database(accounts).reading() as session:
        rows = feedback.given(session, last=last, model=model, rating=rating)
    print_document({"feedback": rows}, as_json, "keys.print_feedback")


@feedback_app.command("export")
def export(
    format_: Annotated[Literal["preference", "chat"], typer.Option("--format", help="What is to be trained.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="JSON lines, as `data.sources` reads them.")],
    accounts: Url = None,
    as_json: AsJson = False,
) -> None:
    """Write feedback as training data: only what was given with consent, and has its texts.

    Example:  slipway feedback export --format preference --out feedback.jsonl
    """
    from orchestrator.serve.accounts.feedback_export import export as exported
    from orchestrator.store import write_text

    with _database(accounts).reading() as session:
        made = exported(session, format_)
    if out.is_dir():
        raise DataError(f"{out} is a folder", fix="name the file to write in --out, such as feedback.jsonl")
    if not out.parent.is_dir():
        raise DataError(
            f"there is no folder {out.parent} to write {out.name} into", fix="make it, or give another --out"
        )
    write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made.rows))
    document = {"format": format_, "rows": len(made.rows), "left_out": made.left_out, "out": str(out)}
    print_document(document, as_json)


@audit_app.command("verify")
def verify(as_json: AsJson = False) -> None:
    """Check that no line of the audit log was changed or taken out: exit 0 if so, 3 if not.

    Example:  slipway audit verify
    """
    from orchestrator.serve.accounts.audit import verify_audit
    from orchestrator.serve.accounts.place import audit_path

    report = verify_audit(audit_path())
    print_document(report.as_json(), as_json)
    if report.problem:
        raise typer.Exit(DataError.exit_code)


@audit_app.command("show")
def show(
    last: Annotated[int, typer.Option("--last", min=1, help="How many lines.")] = 50, as_json: AsJson = False
) -> None:
    """The newest events of the audit log, oldest first.

    Example:  slipway audit show --last 10
    """
    from collections import deque

    from orchestrator.serve.accounts.audit import read_audit
    from orchestrator.serve.accounts.place import audit_path

    events = list(deque(read_audit(audit_path()), maxlen=last))
    print_document({"events": events}, as_json, "keys.print_events")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.add_typer(keys_app, name="keys")
    app.command("usage")(usage)
    app.add_typer(feedback_app, name="feedback")
    app.add_typer(audit_app, name="audit")


def expiry(text: str, *, now: float) -> float:
    """`30d`, `12h` or `2w` from now, or a day in UTC, at whose end it is over; in seconds since 1970.

    Raises:
        JobError: it is neither, or lies behind us.
    """
    span = _SPAN.fullmatch(text)
    moment = now + int(span[1]) * _SPAN_S[span[2]] if span else _day(text, option="--expires") + 86400
    if moment <= now:
        raise JobError(f"--expires {text!r} is over already", fix="give a later one, such as 30d")
    return moment


def _day(text: str, *, option: str) -> float:
    """The beginning of a day."""
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        span = " or a span such as 30d" if option == "--expires" else ""
        raise JobError(f"{option} {text!r} is no day", fix=f"give YYYY-MM-DD{span}") from None


def _nano(money: float) -> int:
    """In the billionths that accounts keep."""
    from orchestrator.serve.accounts.keys import NANO

    if not 1 / NANO <= money <= 1e9:  # true of NaN too
        raise JobError(f"--budget {money} is no sum that can be spent", fix="give more than 0 and at most 1e9")
    return round(money * NANO)


def _limits(*, scopes: str | None, models: str | None, budget: float | None, expires: str | None) -> dict[str, Any]:
    """As keys have them; what they mean together is checked where keys are kept."""
    return {
        "scopes": None if scopes is None else frozenset(_listed(scopes)),
        "models": None if models is None else frozenset(_listed(models)),
        "budget_nano": None if budget is None else _nano(budget),
        "expires_at": None if expires is None else expiry(expires, now=time.time()),
    }


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _database(url: str | None) -> Database:
    from orchestrator.serve.accounts.database import Database
    from orchestrator.serve.accounts.place import accounts_url

    return Database(accounts_url(url), durable=True)
