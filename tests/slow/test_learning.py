"""Models learn: on real sets, beside a Trainer of transformers, a bag of words, and themselves without pre-training.

Needs SLIPWAY_TEST_DATA; each test prints its figures (`pytest -s`). Trainer needs `accelerate`, which this project does
not: SLIPWAY_TRAINER_PACKAGES names a folder of packages that has it, else the one of the benchmark of training is taken
(benchmarks/peers/training.txt). Run as a program this file is that Trainer: python test_learning.py FOLDER

B samples, T tokens, V words.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.huggingface import to_hf_config
from orchestrator.attempts import writing_run
from orchestrator.cluster.connect import Session
from orchestrator.data.dataset import Dataset, open_dataset
from orchestrator.data.load.stream import Samples, TokenStream
from orchestrator.evaluation.evaluate import evaluate_target
from orchestrator.job import JobSpec
from orchestrator.job_file import load_job
from orchestrator.objectives.task import make_feed
from orchestrator.run import prepare_only
from orchestrator.runfolder import dataset_of
from orchestrator.store import Store
from orchestrator.train.group import join_group, leave_group
from orchestrator.train.worker import run_worker

JOBS = Path(__file__).parents[2] / "jobs"
DATA = Path(os.environ.get("SLIPWAY_TEST_DATA", ""))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif("SLIPWAY_TEST_DATA" not in os.environ, reason="SLIPWAY_TEST_DATA is not set"),
]
HERE_ONLY = ["track.wandb.mode=disabled", "train.workers={min: 1, max: 1, cpus: 1}", "train.precision=fp32"]
SMALL_ENCODER = "model={kind: bert, layers: 2, width: 128, heads: 4, context: %d, dropout: %s}"
ENCODER = SMALL_ENCODER % (64, 0.1)
PRETRAINING_STEPS = 2500
BERTS_RATE, SCRATCHS_RATE = 5.0e-5, 1.0e-3
CHANCE = 0.02
"""Two standard errors of an accuracy on 1,821 sentences."""
SEEDS = (0, 1, 2)
GPT_TRAINING = [
    "data.tokenizer.vocab_size=4096",
    "train.steps=400",
    "train.batch_tokens=4096",
    "train.schedule={name: cosine, warmup_steps: 40, final_fraction: 0.0}",
    "train.zero={stage: 0}",
    "train.evaluate={}",
]
WITHIN = 0.01
"""Nats, for the draw of the initial weights."""


@dataclass(frozen=True)
class Workshop:
    """A store, and what it takes to train in it: one Ray for all preparations, and this process."""

    store: Store
    session: Session

    def train(self, name: str, *sets: str) -> Path:
        """The finished run of a job of jobs/."""
        before = set(self.store.runs.glob("*"))
        prepare_only(load_job(JOBS / f"{name}.yaml", [*HERE_ONLY, *sets]), store=self.store, session=self.session)
        (run,) = set(self.store.runs.glob("*")) - before
        with writing_run(run) as attempt:
            run_worker(run, attempt=attempt, group=join_group())
        return run

    def scores(self, run: Path, split: str) -> dict[str, float]:
        return evaluate_target(self.store, str(run), split=split).scores.metrics


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    with Session() as session:
        yield Workshop(Store(tmp_path_factory.mktemp("store")), session)
    leave_group()


def tell(what: str, **figures: float) -> None:
    print(f"\n{what}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))


def of_files(kind: str, train: Path, validation: str) -> str:
    """Sources of a labelled set: a sample to learn by heart, and what is held out."""
    shape = ", format: squad" if kind == "squad" else ""
    sources = [f"{{name: train, path: {train}, split: train{shape}}}"]
    sources += [f"{{name: dev, path: {DATA / validation}, split: validation{shape}}}"]
    return f"data.sources=[{', '.join(sources)}]"


def test_the_head_of_entities_learns_a_sample_by_heart(workshop: Workshop, tmp_path: Path) -> None:
    text = gzip.decompress((DATA / "wnut17/train.conll.gz").read_bytes()).decode()
    with_names = [sentence for sentence in re.split(r"\n\t?\n", text) if "\tB-" in sentence][:150]
    (tmp_path / "sample.conll").write_text("\n\n".join(with_names) + "\n")
    run = workshop.train(
        "entities",
        of_files("conll", tmp_path / "sample.conll", "wnut17/dev.conll.gz"),
        SMALL_ENCODER % (64, 0.0),
        "data.tokenizer.vocab_size=2048",
        "train.steps=250",
        "train.batch_tokens=2048",
        "train.optimizer.learning_rate=1.0e-3",
        "train.evaluate={}",
    )
    learned, held_out = (workshop.scores(run, split)["f1"] for split in ("train", "validation"))
    tell("entities of 150 sentences of wnut17", f1=learned, held_out_f1=held_out)
    assert learned >= 0.95


def test_the_head_of_answers_learns_a_sample_by_heart(workshop: Workshop, tmp_path: Path) -> None:
    whole = json.loads(gzip.decompress((DATA / "squad-sample/train.json.gz").read_bytes()))
    (tmp_path / "sample.json").write_text(json.dumps({**whole, "data": whole["data"][2:5]}))
    run = workshop.train(
        "answers",
        of_files("squad", tmp_path / "sample.json", "squad-sample/dev.json.gz"),
        SMALL_ENCODER % (256, 0.0),
        "data.tokenizer.vocab_size=2048",
        "train.steps=250",
        "train.optimizer.learning_rate=1.0e-3",
        "train.evaluate={}",
    )
    learned, held_out = (workshop.scores(run, split) for split in ("train", "validation"))
    for where, found in (("learned", learned), ("held out", held_out)):
        tell(f"answers of three articles of squad, {where}", exact_match=found["exact_match"], f1=found["f1"])
    assert learned["exact_match"] >= 0.9


def test_a_small_gpt_is_as_good_as_the_trainers(workshop: Workshop, tmp_path: Path) -> None:
    """Same tokens in the same order, tokenizer, sizes, optimizer, schedule; each with its own initial weights."""
    packages = trainer_packages()
    if packages is None:
        pytest.skip("accelerate is not installed; SLIPWAY_TRAINER_PACKAGES may name a folder that has it")
    run = workshop.train("wikitext", "model={kind: gpt, layers: 4, width: 128, heads: 4, context: 128}", *GPT_TRAINING)
    ours = workshop.scores(run, "validation")["loss"]
    theirs = loss_of_trainer(run, tmp_path, packages)
    tell("wikitext-2, validation loss", ours=ours, trainer=theirs, difference=ours - theirs)
    assert ours <= theirs + WITHIN


def trainer_packages() -> str | None:
    """What PYTHONPATH takes so that Trainer works; empty where nothing is missing."""
    if importlib.util.find_spec("accelerate"):
        return ""
    benchmark = Path(tempfile.gettempdir()) / "slipway-benchmarks" / "training"
    asked = os.environ.get("SLIPWAY_TRAINER_PACKAGES")
    folders = [Path(asked)] if asked else [*benchmark.glob("lib/python3*/site-packages")]
    return next((str(folder) for folder in folders if (folder / "accelerate").is_dir()), None)


def loss_of_trainer(run: Path, folder: Path, packages: str) -> float:
    """The validation loss of a transformers model that Trainer has trained on a run's data, in its own process."""
    job, dataset = load_job(run / "job.yaml"), open_dataset(dataset_of(run))
    np.save(folder / "train.npy", trained_samples(job, dataset))
    held_out = Samples(TokenStream(dataset.shard_paths("validation")), job.model.context)
    np.save(folder / "validation.npy", held_out.read(np.arange(held_out.count)))
    written = to_hf_config(job.model.config(dataset.vocab_size), bos_token_id=None, eos_token_id=None, dtype="float32")
    settings = {"config": written, "train": job.training.model_dump(mode="json"), "context": job.model.context}
    (folder / "settings.json").write_text(json.dumps(settings))
    # This process is a group of one, and what it has set for that would make Trainer look for others.
    outside = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        env={**outside, "PYTHONPATH": os.pathsep.join([packages, str(JOBS.parent)])},
        stdout=subprocess.PIPE,
        text=True,
        timeout=1500,
        check=True,
    )
    return float(json.loads(done.stdout.splitlines()[-1])["eval_loss"])


def trained_samples(job: JobSpec, dataset: Dataset) -> np.ndarray:
    """[steps x B, T + 1] ids in the order in which the run has seen them."""
    with contextlib.ExitStack() as leases:
        feed = make_feed(job, dataset, leases)
        batches = [feed.read(step, 0, feed.samples_per_step).tensors for step in range(1, job.training.steps + 1)]
        return np.concatenate([torch.cat([b["input_ids"], b["targets"][:, -1:]], dim=1).numpy() for b in batches])


def run_trainer(folder: Path) -> None:
    """Train and evaluate as transformers' documentation shows; the last line printed is JSON."""
    from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

    settings = json.loads((folder / "settings.json").read_text())
    train, optimizer = settings["train"], settings["train"]["optimizer"]
    config = AutoConfig.for_model(settings["config"].pop("model_type"), **settings["config"])
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=train["steps"],
        per_device_train_batch_size=train["batch_tokens"] // settings["context"],
        learning_rate=optimizer["learning_rate"],
        weight_decay=optimizer["weight_decay"],
        adam_beta1=optimizer["beta1"],
        adam_beta2=optimizer["beta2"],
        adam_epsilon=optimizer["eps"],
        max_grad_norm=train["gradient_clip"],
        lr_scheduler_type="cosine",
        warmup_steps=train["schedule"]["warmup_steps"],
        train_sampling_strategy="sequential",
        use_cpu=True,
        seed=train["seed"],
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=100,
    )
    train_rows, held_out = (rows_of_trainer(folder / f"{split}.npy") for split in ("train", "validation"))
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    trainer = Trainer(model, arguments, train_dataset=train_rows, eval_dataset=held_out)
    trainer.train()
    print(json.dumps(trainer.evaluate()))


def rows_of_trainer(path: Path) -> list[dict[str, torch.Tensor]]:
    """Its models shift the labels themselves."""
    return [{"input_ids": ids, "labels": ids} for ids in torch.from_numpy(np.load(path).astype(np.int64))]


def test_pretraining_pays_on_sentiment(workshop: Workshop) -> None:
    """At the rate that BERT is fine-tuned with (Devlin et al. 2018, A.3), the same for both.

    What a rate that suits a network without pre-training makes of the two is printed beside it: two million words of
    an encyclopedia say little of sentiment, and there the two are level.
    """
    begun = workshop.train(
        "wikitext",
        "name=encoder",
        ENCODER,
        "data.tokenizer={train: wordpiece, vocab_size: 8192, lowercase: true}",
        "train.masking={share: 0.3, frequency_bias: true}",
        f"train.steps={PRETRAINING_STEPS}",
        "train.batch_tokens=4096",
        "train.precision=bf16",
        "train.schedule={name: linear, warmup_steps: 200, final_fraction: 0.0}",
        "train.optimizer={learning_rate: 1.5e-3, weight_decay: 0.01, beta2: 0.98}",
        "train.zero={stage: 0}",
        "train.evaluate={}",
        "train.checkpoint={every_steps: 1000}",
    )
    tell("masked tokens of wikitext-2, validation", **workshop.scores(begun, "validation"))
    means = {}
    for rate in (BERTS_RATE, SCRATCHS_RATE):
        for how, more in (("with pre-training", [f"train.from={begun}"]), ("from scratch", [])):
            found = tuned(workshop, begun, rate, more)
            means[rate, how] = statistics.fmean(found)
            by_seed = {f"seed_{seed}": accuracy for seed, accuracy in zip(SEEDS, found, strict=True)}
            tell(f"sst2 at {rate:g}, {how}", mean=means[rate, how], **by_seed)
    words = bag_of_words(rows_of("sst2/train.tsv.gz"), rows_of("sst2/test.tsv.gz"))
    above_it = max(means.values()) - words
    tell("sst2, logistic regression on words", accuracy=words, our_best_above_it=above_it)
    assert means[BERTS_RATE, "with pre-training"] > means[BERTS_RATE, "from scratch"] + CHANCE


def tuned(workshop: Workshop, begun: Path, rate: float, more: list[str]) -> list[float]:
    """Accuracy on the test split of sst2, a seed each."""
    tokenizer = f"data.tokenizer={{path: {dataset_of(begun)}/tokenizer.json}}"
    sets = (tokenizer, ENCODER, "train.evaluate={}", f"train.optimizer.learning_rate={rate}", *more)
    runs = [workshop.train("sentiment", f"train.seed={seed}", *sets) for seed in SEEDS]
    return [workshop.scores(run, "test")["accuracy"] for run in runs]


def rows_of(name: str) -> list[tuple[str, int]]:
    with gzip.open(DATA / name, "rt", encoding="utf-8", newline="") as file:
        return [(text, int(label)) for text, label in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def bag_of_words(train: list[tuple[str, int]], test: list[tuple[str, int]]) -> float:
    """Accuracy of logistic regression on which words there are, at the minimum of scikit-learn's default objective."""
    number = {word: i for i, word in enumerate(sorted({word for text, _ in train for word in text.split()}))}
    bags = [torch.tensor(sorted({number[w] for w in text.split() if w in number})) for text, _ in [*train, *test]]
    labels_B = torch.tensor([float(label) for _, label in [*train, *test]])
    weights_V = torch.zeros(len(number), requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)

    def logits(chosen: list[torch.Tensor]) -> torch.Tensor:
        starts = torch.tensor([0, *np.cumsum([len(bag) for bag in chosen])[:-1]])
        return F.embedding_bag(torch.cat(chosen).long(), weights_V[:, None], starts, mode="sum")[:, 0] + bias

    optimizer = torch.optim.LBFGS([weights_V, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(logits(bags[: len(train)]), labels_B[: len(train)], reduction="sum")
        penalised = loss + weights_V.square().sum() / 2
        penalised.backward()  # type: ignore[no-untyped-call]
        return penalised

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    right_B = (logits(bags[len(train) :]) > 0).float() == labels_B[len(train) :]
    return float(right_B.float().mean())


if __name__ == "__main__":
    run_trainer(Path(sys.argv[1]))
