"""Job files: where a mistake stands, what it should have been, `extends`, `--set`, and the round trip."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import JobError
from orchestrator.job import JobSpec
from orchestrator.job_file import Tree, job_to_yaml, load_job, resolve_env, validate_job

JOB = """\
name: tiny
data:
  sources:
    - path: docs/*.txt
      exclude: [a, b]
model: {layers: 2, width: 32, heads: 4, context: 16}
train:
  steps: 10
  batch_tokens: 64
"""


def write(folder: Path, text: str, name: str = "job.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refused(folder: Path, text: str, *overrides: str) -> str:
    """The message of the refusal, with the folder's name left out."""
    with pytest.raises(JobError) as caught:
        load_job(write(folder, text), overrides)
    assert caught.value.exit_code == 2
    assert caught.value.fix
    return caught.value.message.replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("  steps: 10", "  step: 10", "job.yaml:8: unknown key 'train.step'; did you mean 'steps'?"),
        ("model:", "modle:", "job.yaml:6: unknown key 'modle'; did you mean 'model'?"),
        ("    - path:", "    - pth:", "job.yaml:4: unknown key 'data.sources.0.pth'; did you mean 'path'?"),
        ("layers: 2", "layer: 2", "job.yaml:6: unknown key 'model.layer'; did you mean 'layers'?"),
        ("  steps: 10", "  steps: 10\n  zero: {stge: 1}", "job.yaml:9: unknown key 'train.zero.stge'; did you mean"),
        (
            "  steps: 10",
            "  steps: 10\n  zero: {qqq: 1}",
            "job.yaml:9: unknown key 'train.zero.qqq'; known here: offload, stage",
        ),
    ],
)
def test_an_unknown_key_names_its_line_and_the_nearest_key(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert problem in refused(tmp_path, JOB.replace(old, new))


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    message = refused(tmp_path, JOB.replace("layers: 2", "layers: 0").replace("steps: 10", "stepz: 10"))
    assert "job.yaml:6: model.layers = 0" in message
    assert "job.yaml:8: unknown key 'train.stepz'" in message
    assert "job.yaml:7: the key 'train.steps' is missing" in message


def test_a_wrong_value_names_its_line(tmp_path: Path) -> None:
    assert 'job.yaml:8: train.steps = "ten": ' in refused(tmp_path, JOB.replace("steps: 10", "steps: ten"))
    assert "job.yaml:5: data.sources.0.exclude.1 = 2: " in refused(tmp_path, JOB.replace("[a, b]", "[a, 2]"))


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    assert "job.yaml:9: the key 'steps' stands twice" in refused(
        tmp_path, JOB.replace("  steps: 10", "  steps: 10\n  steps: 20")
    )


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch {made}']",
        "!!python/object/apply:subprocess.check_call [['touch', '{made}']]",
        "!!python/name:os.system",
        "!something 3",
    ],
)
def test_tags_are_refused_and_nothing_runs(tmp_path: Path, value: str) -> None:
    value = value.replace("{made}", str(tmp_path / "made"))
    assert "job.yaml:1: not valid YAML: could not determine a constructor for the tag" in refused(
        tmp_path, JOB.replace("name: tiny", f"name: {value}")
    )
    assert "the value is not valid YAML" in refused(tmp_path, JOB, f"name={value}")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("value", "kind"), [("!!timestamp 2020-01-01", "date"), ("!!set {a, b}", ""), ("!!binary YWJj", "bytes")]
)
def test_a_value_that_is_no_plain_data_is_refused(tmp_path: Path, value: str, kind: str) -> None:
    assert kind in refused(tmp_path, JOB.replace("name: tiny", f"name: {value}"))
    assert kind in refused(tmp_path, JOB, f"name={value}")


@pytest.mark.parametrize(
    ("text", "kind"), [("", "nothing"), ("# only a note\n", "nothing"), ("- a\n", "a list"), ("tiny", "a text")]
)
def test_what_is_no_mapping_is_no_job(tmp_path: Path, text: str, kind: str) -> None:
    assert f"job.yaml holds {kind}, not a job" in refused(tmp_path, text)


def test_broken_yaml_names_its_line(tmp_path: Path) -> None:
    assert "job.yaml:7: not valid YAML: expected ',' or '}'" in refused(tmp_path, JOB.replace("16}", "16"))
    assert "job.yaml:2: not valid YAML: found character '\\t'" in refused(tmp_path, "name: tiny\n\tdata: x\n")


def test_a_list_that_holds_itself_is_refused(tmp_path: Path) -> None:
    assert "not valid YAML" in refused(tmp_path, "name: &a [*a]\n")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"there is no job file .*absent\.yaml"):
        load_job(tmp_path / "absent.yaml")
    with pytest.raises(JobError, match="cannot be read"):
        load_job(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(JobError, match=r"latin\.yaml cannot be read: .*utf-8"):
        load_job(tmp_path / "latin.yaml")


class TestExtends:
    def test_mappings_merge_lists_replace_null_removes(self, tmp_path: Path) -> None:
        write(tmp_path, JOB.replace("  steps: 10", "  steps: 10\n  seed: 5\n  zero: {stage: 3}"), "base.yaml")
        child = "extends: base.yaml\ndata: {sources: [{path: b}]}\ntrain: {steps: 7, zero: null}\n"
        job = load_job(write(tmp_path, child))
        assert (job.name, job.training.steps, job.training.seed, job.training.batch_tokens) == ("tiny", 7, 5, 64)
        assert [s.path for s in job.data.sources] == ["b"]
        assert job.data.sources[0].exclude == []
        assert job.training.zero.stage == 2

    def test_removing_lets_a_given_tokenizer_take_the_place_of_a_trained_one(self, tmp_path: Path) -> None:
        write(tmp_path, JOB.replace("data:", "data:\n  tokenizer: {train: bpe, vocab_size: 300}"), "base.yaml")
        child = "extends: base.yaml\ndata: {tokenizer: {train: null, vocab_size: null, path: t.json}}\n"
        assert load_job(write(tmp_path, child)).data.tokenizer.path == "t.json"

    def test_it_is_relative_to_the_file_that_says_it(self, tmp_path: Path) -> None:
        (tmp_path / "a" / "b").mkdir(parents=True)
        write(tmp_path, JOB, "base.yaml")
        write(tmp_path / "a", "extends: ../base.yaml\nname: middle\n", "middle.yaml")
        job = load_job(write(tmp_path / "a" / "b", "extends: ../middle.yaml\ntrain: {seed: 3}\n"))
        assert (job.name, job.training.seed, job.training.steps) == ("middle", 3, 10)

    def test_a_mistake_is_told_at_the_line_of_the_file_it_stands_in(self, tmp_path: Path) -> None:
        write(tmp_path, JOB.replace("layers: 2", "layers: 0"), "base.yaml")
        message = refused(tmp_path, "extends: base.yaml\nname: child\ntrain:\n  seed: -1\n  stpes: 2\n")
        assert "base.yaml:6: model.layers = 0" in message
        assert "job.yaml:4: train.seed = -1" in message
        assert "job.yaml:5: unknown key 'train.stpes'; did you mean 'steps'?" in message

    def test_a_replaced_value_takes_its_line_along(self, tmp_path: Path) -> None:
        write(tmp_path, JOB, "base.yaml")
        message = refused(tmp_path, "extends: base.yaml\n\n\ndata: {sources: [{frmat: text}]}\n")
        assert "job.yaml:4: unknown key 'data.sources.0.frmat'; did you mean 'format'?" in message
        assert "job.yaml:4: the key 'data.sources.0.path' is missing" in message

    def test_a_circle_is_refused(self, tmp_path: Path) -> None:
        write(tmp_path, "extends: job.yaml\n", "base.yaml")
        assert "extends itself: job.yaml -> base.yaml -> job.yaml" in refused(tmp_path, "extends: base.yaml\n" + JOB)
        assert "extends itself" in refused(tmp_path, "extends: job.yaml\n" + JOB)

    def test_a_base_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        assert "there is no job file none.yaml" in refused(tmp_path, "extends: none.yaml\n" + JOB)

    def test_it_must_name_a_file(self, tmp_path: Path) -> None:
        assert "job.yaml:1: extends is ['a'], not a file name" in refused(tmp_path, "extends: [a]\n" + JOB)


class TestSet:
    @pytest.mark.parametrize(
        ("override", "value"),
        [
            ("train.steps=12", 12),
            ("train.optimizer.learning_rate=1e-3", 1e-3),
            ("train.optimizer.learning_rate=2E-4", 2e-4),
            ("train.optimizer.learning_rate=.5", 0.5),
            ("data.sources=[{path: x/*.txt, format: text}]", [{"path": "x/*.txt", "format": "text"}]),
            ("train.workers={min: 2, max: 3}", {"min": 2, "max": 3}),
            ("model.tie_embeddings=false", False),
            ("name=a.b-c_d", "a.b-c_d"),
            ('name="1e3"', "1e3"),
            ("name=2020-01-01", "2020-01-01"),
            ("data.sources=[{path: 'a=b'}]", [{"path": "a=b"}]),
            ("track.wandb.project=", ""),
            (" train.steps = 12", 12),
        ],
    )
    def test_it_takes_any_yaml_value(self, tmp_path: Path, override: str, value: Any) -> None:
        found: Any = load_job(write(tmp_path, JOB), [override]).model_dump(mode="json", exclude_unset=True)
        for key in override.partition("=")[0].strip().split("."):
            found = found[key]
        assert found == value

    def test_a_mapping_replaces_and_the_last_word_holds(self, tmp_path: Path) -> None:
        path = write(tmp_path, JOB.replace("  steps: 10", "  steps: 10\n  zero: {stage: 3}"))
        assert load_job(path, ["train.zero={}"]).train.zero.stage == 2
        assert load_job(path, ["train.steps=3", "train.steps=4"]).train.steps == 4

    def test_null_removes(self, tmp_path: Path) -> None:
        path = write(tmp_path, JOB.replace("  steps: 10", "  steps: 10\n  seed: 9"))
        assert load_job(path, ["train.seed=null"]).train.seed == 0
        assert "the key 'train.steps' is missing" in refused(tmp_path, JOB, "train.steps=null")

    def test_it_is_where_a_mistake_stands(self, tmp_path: Path) -> None:
        assert "--set train.stpes: unknown key 'train.stpes'; did you mean 'steps'?" in refused(
            tmp_path, JOB, "train.stpes=3"
        )
        assert "--set train.zero: train.zero.stage = 9" in refused(tmp_path, JOB, "train.zero={stage: 9}")

    @pytest.mark.parametrize("override", ["train.steps", "=3", "train..steps=3", "train.=3", ""])
    def test_what_is_no_assignment_is_refused(self, tmp_path: Path, override: str) -> None:
        assert f"--set {override!r} has no value" in refused(tmp_path, JOB, override)

    @pytest.mark.parametrize("text", ["[1", "{a: 1", "'", "a: b: c", f"{'9' * 5000}", "!!int x", "\x01"])
    def test_what_is_no_yaml_is_refused(self, tmp_path: Path, text: str) -> None:
        assert "the value is not valid YAML" in refused(tmp_path, JOB, f"train.steps={text}")

    def test_a_key_that_stands_twice_is_refused(self, tmp_path: Path) -> None:
        assert "the key 'stage' stands twice" in refused(tmp_path, JOB, "train.zero={stage: 1, stage: 2}")


class TestResolveEnv:
    def test_a_variable_and_its_default(self) -> None:
        environ = {"A": "1", "EMPTY": ""}
        assert resolve_env("${env:A}/${env:B:-two}/${env:A:-x}${env:EMPTY}", environ) == "1/two/1"
        assert resolve_env("${env:B:-}", environ) == ""

    def test_other_dollars_stay(self) -> None:
        assert resolve_env("$A ${python:stdlib} ${env:}", {"A": "1"}) == "$A ${python:stdlib} ${env:}"

    def test_a_value_is_not_resolved_again(self) -> None:
        assert resolve_env("${env:A}", {"A": "${env:B}"}) == "${env:B}"

    def test_an_unset_variable_is_named(self) -> None:
        with pytest.raises(JobError, match=re.escape("'${env:HERE}/x' needs the environment variable HERE")) as caught:
            resolve_env("${env:HERE}/x", {})
        assert "${env:HERE:-value}" in str(caught.value.fix)


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
counts = st.integers(1, 10**9)
fractions = st.floats(0, 0.49)
rates = st.floats(min_value=0, exclude_min=True, allow_infinity=False)


def section(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    """Valid jobs as plain data."""
    source = st.fixed_dictionaries(
        {"path": texts},
        optional={
            "format": st.sampled_from(["text", "jsonl"]),
            "text": texts,
            "include": st.none() | texts | st.lists(texts, max_size=2),
            "exclude": st.lists(texts, max_size=2),
        },
    )
    trained = section(train=st.just("bpe"), vocab_size=st.integers(257, 10**6), sample_bytes=counts)
    tokenizer = trained | st.fixed_dictionaries({"path": texts})
    context, heads = draw(st.integers(2, 4096)), draw(st.integers(1, 8))
    steps = draw(counts)
    train = section(
        optimizer=section(learning_rate=rates, eps=rates, weight_decay=st.floats(0, 1), beta1=fractions),
        schedule=section(name=st.sampled_from(["cosine", "constant"]), warmup_steps=st.integers(0, steps)),
        gradient_clip=st.just(0.0) | rates,
        precision=st.sampled_from(["fp32", "bf16"]),
        zero=section(stage=st.integers(0, 3)),
        seed=st.integers(0, 2**63),
        workers=st.sampled_from([{"min": 2}, {"min": 1, "max": 8, "cpus": 4, "gpus": 1}]),
        evaluate=section(every_steps=st.none() | counts, max_tokens=st.none() | counts),
    )
    return {
        "name": draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)),
        "data": {
            "sources": draw(st.lists(source, min_size=1, max_size=2)),
            "tokenizer": draw(tokenizer),
            "split": draw(section(validation=fractions, test=fractions)),
        },
        "model": {"context": context, "heads": heads, "width": heads * 2 * draw(st.integers(1, 32))},
        "train": {**draw(train), "steps": steps, "batch_tokens": context * draw(st.integers(1, 100))},
        "track": {"wandb": draw(section(project=texts, entity=st.none() | texts, tags=st.lists(texts, max_size=2)))},
    }


@settings(max_examples=40)
@given(jobs())
def test_what_is_written_reads_as_the_same_job(tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]) -> None:
    job = validate_job(Tree(data))
    path = write(tmp_path_factory.getbasetemp(), job_to_yaml(job), "round-trip.yaml")
    assert load_job(path) == job
    assert job_to_yaml(load_job(path)) == job_to_yaml(job)


@pytest.mark.parametrize("name", ["1e3", "0e0", "123", "true", "null", "2020-01-01", "0x1F", "on", "1_000"])
def test_a_name_that_looks_like_something_else_stays_a_name(tmp_path: Path, name: str) -> None:
    job = load_job(write(tmp_path, JOB), [f'name="{name}"'])
    assert load_job(write(tmp_path, job_to_yaml(job))) == job


def test_a_written_job_is_whole(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, JOB))
    text = job_to_yaml(job)
    assert "rope_theta: 10000.0" in text
    assert isinstance(load_job(write(tmp_path, text)), JobSpec)


def test_a_null_below_a_section_that_the_base_lacks_removes_nothing(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("name: n\ndata: {sources: [{path: x}]}\ntrain: {steps: 1, batch_tokens: 256}\n")
    (tmp_path / "child.yaml").write_text("extends: base.yaml\nserve: {port: null, max_tokens: null}\n")
    assert load_job(tmp_path / "child.yaml").serve == load_job(tmp_path / "base.yaml").serve


def test_a_mistake_in_a_section_that_may_be_off_is_told_once(tiny_job: Callable[..., JobSpec]) -> None:
    with pytest.raises(JobError, match=r"similarity = 2: input should be less than or equal to 1") as caught:
        tiny_job("data.deduplicate.near.similarity=2")
    assert "literal" not in caught.value.message
    with pytest.raises(JobError, match=r"data\.deduplicate\.near"):
        tiny_job("data.deduplicate.near=3")
