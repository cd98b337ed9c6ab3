"""What `slipway evaluate` says, computed again by hand; what it refuses."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import custom_fixtures
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluation_fixtures import CLASSIFIED, CONTEXT, lay_out_checkpoint, lay_out_classified, lay_out_labelled
from export_fixtures import tiny_model, tiny_tokenizer
from tokenizers import Tokenizer
from typer.testing import CliRunner

from model.config import HeadConfig
from orchestrator.checkpoint.origin import identity_of_source
from orchestrator.data.shards import open_shard
from orchestrator.errors import DataError, JobError, StoreError
from orchestrator.evaluation.evaluate import EVALUATIONS, evaluate_target
from orchestrator.export.importing import import_folder
from orchestrator.export.stage import export_run
from orchestrator.job import JobSpec
from orchestrator.job_file import load_job
from orchestrator.store import Store


def loss_by_hand(dataset: Path, job: JobSpec) -> tuple[float, int]:
    """Of the validation split: mean over the targets of its whole samples."""
    tokens = open_shard(dataset / "validation.arrow").tokens.astype(np.int64)
    samples = (len(tokens) - 1) // CONTEXT
    ids = torch.from_numpy(np.stack([tokens[i * CONTEXT : i * CONTEXT + CONTEXT + 1] for i in range(samples)]))
    with torch.no_grad():
        logits = tiny_model(job.model.config(300))(ids[:, :-1])
    return float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())), samples


def test_a_run_is_scored_as_by_hand_and_the_result_written_down(
    store: Store, run: Path, job: JobSpec, dataset: Path
) -> None:
    document = evaluate_target(store, run.name).as_json()
    loss, samples = loss_by_hand(dataset, job)
    assert document["metrics"]["loss"] == pytest.approx(loss, abs=1e-4)
    assert document["metrics"]["perplexity"] == pytest.approx(math.exp(loss), rel=1e-3)
    assert document["metrics"]["bits_per_byte"] > 0
    assert (document["samples"], document["step"], document["split"]) == (samples, 20, "validation")
    assert document["target"] == f"runs/{run.name}/checkpoints/step-00000020"
    assert document["dataset"] == f"datasets/{dataset.name}"
    (line,) = (run / EVALUATIONS).read_text().splitlines()
    written = json.loads(line)
    assert written.pop("time")
    assert written == json.loads(json.dumps(document))


def test_it_is_the_same_each_time_and_each_is_a_line(store: Store, run: Path) -> None:
    first = evaluate_target(store, str(run)).as_json()
    assert evaluate_target(store, f"runs/{run.name}").as_json() == first
    assert len((run / EVALUATIONS).read_text().splitlines()) == 2


def test_the_train_split_may_be_asked_for(store: Store, run: Path) -> None:
    train = evaluate_target(store, run.name, split="train")
    assert train.split == "train"
    assert train.samples > evaluate_target(store, run.name).samples


def test_decoders_write_after_the_jobs_prompts(store: Store, run: Path) -> None:
    generated = evaluate_target(store, run.name).generated
    assert generated is not None
    assert [text["prompt"] for text in generated] == ["def add(", "class"]
    assert all(isinstance(text["text"], str) for text in generated)


def test_the_best_checkpoint_is_taken_where_one_is_chosen(store: Store, run: Path, job: JobSpec) -> None:
    lay_out_checkpoint(run, 30, job.model.config(300), best_step=10)
    assert evaluate_target(store, run.name).step == 10


def test_an_export_of_a_run_has_the_runs_scores_and_is_written_down_there(store: Store, run: Path) -> None:
    want = evaluate_target(store, run.name)
    with contextlib.ExitStack() as stack:
        made = export_run(run, at_end=stack.callback)
    found = evaluate_target(store, str(made.path))
    assert found.scores.metrics["loss"] == pytest.approx(want.scores.metrics["loss"], abs=1e-5)
    assert (found.step, found.target) == (20, f"runs/{run.name}/export/step-00000020")
    assert len((run / EVALUATIONS).read_text().splitlines()) == 2


def test_an_import_needs_a_job_and_has_the_sources_scores(
    store: Store, run: Path, make_job: Callable[..., JobSpec]
) -> None:
    with contextlib.ExitStack() as stack:
        made = export_run(run, at_end=stack.callback)
    imported = import_folder(made.path, store)
    with pytest.raises(JobError, match="is an import: it has no data of its own") as e:
        evaluate_target(store, imported.name)
    assert "--job JOB" in str(e.value.fix)
    found = evaluate_target(store, imported.name, job=make_job())
    assert found.scores.metrics == evaluate_target(store, str(made.path)).scores.metrics
    assert found.target == f"exports/{imported.name}"
    assert not list(imported.glob(EVALUATIONS))


def test_an_export_that_was_moved_away_from_its_run_finds_it_by_name(store: Store, run: Path, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        made = export_run(run, at_end=stack.callback)
    moved = made.path.rename(tmp_path / "moved")
    assert evaluate_target(store, str(moved)).step == 20
    (run / "job.yaml").unlink()
    with pytest.raises(JobError, match=rf"the run {run.name} of .*moved is not in"):
        evaluate_target(store, str(moved))


def test_a_classifier_and_its_export_are_scored_as_by_hand(store: Store, tmp_path: Path) -> None:
    run = lay_out_classified(store, tmp_path)
    document = evaluate_target(store, run.name).as_json()
    labels = ["bad", "good", "so so"]
    tokenizer = Tokenizer.from_str(tiny_tokenizer("wordpiece"))
    model = tiny_model(
        load_job(run / "job.yaml").model.config(tokenizer.get_vocab_size()), HeadConfig("classification", tuple(labels))
    )
    right = 0
    for row in CLASSIFIED:
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer.encode(row["text"].strip()).ids]))["logits"]
        right += labels[int(logits.argmax())] == row["label"]
    assert document["metrics"]["accuracy"] == pytest.approx(right / len(CLASSIFIED))
    assert document["samples"] == len(CLASSIFIED)
    assert document["generated"] is None
    assert document["tables"]
    with contextlib.ExitStack() as stack:
        made = export_run(run, at_end=stack.callback)
    found = evaluate_target(store, str(made.path)).as_json()
    assert found["metrics"] == pytest.approx(document["metrics"], abs=1e-5)


def test_preferences_are_told_against_the_weights_that_the_run_began_with(store: Store, tmp_path: Path) -> None:
    rows = [{"prompt": "def add(", "chosen": f"a, b): return {i}", "rejected": "pass"} for i in range(6)]
    run = lay_out_labelled(store, tmp_path, "preference", rows, {"kind": "gpt"})
    trained = evaluate_target(store, run.name)
    assert trained.scores.metrics["loss"] != pytest.approx(math.log(2), abs=1e-3)
    began = run / "checkpoints" / "step-00000020"
    description = json.loads((run / "run.json").read_text())
    description["origin"] = {"folder": str(began), "identity": identity_of_source(began)}
    (run / "run.json").write_text(json.dumps(description))
    unchanged = evaluate_target(store, run.name)
    assert unchanged.scores.metrics["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert unchanged.samples == len(rows)


def test_a_split_that_is_not_there_or_empty_is_refused_with_those_that_are(store: Store, run: Path) -> None:
    with pytest.raises(JobError, match=r"the split 'dev' of .* does not exist; there are train, validation") as e:
        evaluate_target(store, run.name, split="dev")
    assert e.value.exit_code == 2
    with pytest.raises(JobError, match=r"the split 'test' of .* is empty; there are train, validation"):
        evaluate_target(store, run.name, split="test")
    assert not (run / EVALUATIONS).exists()


def test_no_share_of_a_split_that_no_job_has_is_asked_for(store: Store, run: Path) -> None:
    for split, wanted in (("dev", False), ("test", True)):
        with pytest.raises(JobError) as e:
            evaluate_target(store, run.name, split=split)
        assert ("data.split." in str(e.value.fix)) is wanted


def test_a_network_of_ones_own_is_not_scored_on_text(store: Store, job: JobSpec, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"the job tiny is for model\.kind gpt, .* is a network of your own"):
        evaluate_target(store, str(custom_fixtures.export(tmp_path)), job=job)


def test_a_head_that_the_job_does_not_teach_is_refused(store: Store, bert_run: Path) -> None:
    with pytest.raises(JobError, match=r"the job tiny is for the head lm, .* has the head mlm"):
        evaluate_target(store, bert_run.name)


def test_other_data_is_refused_where_it_does_not_fit(store: Store, run: Path, make_job: Callable[..., JobSpec]) -> None:
    longer = make_job(context=32)
    with pytest.raises(JobError, match=r"model\.context of the job is 32, the model has 16 positions") as e:
        evaluate_target(store, run.name, job=longer)
    assert "model.context=16" in str(e.value.fix)


def test_another_tokenizer_is_refused(
    store: Store, run: Path, job: JobSpec, dataset: Path, prepared: Callable[..., Path]
) -> None:
    with contextlib.ExitStack() as stack:
        made = export_run(run, at_end=stack.callback)
    moved = dataset.rename(dataset.with_name("aside"))
    prepared(job, text=tiny_tokenizer(chat=True))
    with pytest.raises(JobError, match="has another tokenizer than the model"):
        evaluate_target(store, str(made.path))
    assert moved.exists()


def test_data_that_is_not_prepared_is_refused(store: Store, run: Path, make_job: Callable[..., JobSpec]) -> None:
    other = make_job("other")
    changed = other.model_copy(update={"data": other.data.model_copy(update={"sentence_ends": True})})
    with pytest.raises(DataError, match="the dataset of other is not prepared"):
        evaluate_target(store, run.name, job=changed)


def test_what_is_neither_run_nor_export_is_refused(store: Store, run: Path) -> None:
    with pytest.raises(StoreError, match="there is no run 'nothing'") as e:
        evaluate_target(store, "nothing")
    assert "or the folder of an export" in str(e.value.fix)
    (run.parent / "given").mkdir()
    (run.parent / "given" / "config.json").touch()
    with pytest.raises(StoreError, match="there is no run") as e:
        evaluate_target(store, str(run.parent / "given"))
    assert "slipway import" in str(e.value.fix)


def test_a_checkpoint_that_was_altered_is_passed_over(store: Store, run: Path) -> None:
    newest = run / "checkpoints" / "step-00000020"
    description = json.loads((newest / "model.json").read_text())
    (newest / "model.json").write_text(json.dumps({**description, "width": 64}))
    assert evaluate_target(store, run.name).step == 10


def test_the_verbs_print_one_document(store: Store, run: Path) -> None:
    import typer

    from orchestrator.cli_models import register

    app = typer.Typer()
    register(app)
    with contextlib.ExitStack() as stack:
        made = export_run(run, at_end=stack.callback)
    done = CliRunner().invoke(app, ["evaluate", run.name, "--store", str(store.root), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["step"] == 20
    shown = CliRunner().invoke(app, ["evaluate", run.name, "--store", str(store.root)])
    assert "perplexity" in shown.stdout
    assert "> def add(" in shown.stdout
    made_of = CliRunner().invoke(app, ["import", str(made.path), "--store", str(store.root), "--json"])
    assert made_of.exit_code == 0, made_of.output
    assert (store.root / json.loads(made_of.stdout)["export"] / "COMMITTED").exists()
