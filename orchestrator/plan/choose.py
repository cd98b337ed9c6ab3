"""ZeRO stage and micro-batch of a job: as it says, or the best that fits, with the reasons. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from orchestrator.job import JobSpec
from orchestrator.plan.combine import can_shard
from orchestrator.plan.memory import host_bytes, memory_of
from orchestrator.plan.network import Case, Network
from orchestrator.plan.sizes import human_bytes
from orchestrator.plan.states import states
from orchestrator.plan.values import Memory, Probe

_CPU_TOKENS = 2048
"""Tokens of one forward pass on a CPU: enough to fill the matmuls, small enough for its caches."""

_GPU_TOKENS = 65_536
"""On a GPU: beyond these a pass gets no faster a token, it only takes memory."""

_COMFORTABLE_TOKENS = 8192
"""A stage that leaves room for fewer on a GPU is passed over for the next one: short passes waste the GPU."""

_STAGE_UNKNOWN = 2
"""`auto` on several workers whose memory, or whose model, is not known."""


@dataclass(frozen=True)
class Room:
    """Where the workers are put, and what they may fill."""

    workers: int
    usable_bytes: int | None
    usable_host_bytes: int | None
    probe: Probe | None = None


@dataclass(frozen=True)
class Choice:
    """How a step is cut up and sharded."""

    stage: int
    micro_batch: int
    accumulation: int
    memory: Memory | None = None
    host_bytes: int | None = None
    why: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def cut_step(job: JobSpec, workers: int) -> tuple[int, int]:
    """Samples of one forward pass, and forward passes of each worker per step, where memory sets no limit."""
    share = _largest_share(job, workers)
    return _cut(job, share, min(job.training.micro_batch or _aim(job), share))


def _cut(job: JobSpec, share: int, micro_batch: int) -> tuple[int, int]:
    return micro_batch, -(-share // micro_batch)


def _largest_share(job: JobSpec, workers: int) -> int:
    """Samples of a step that the busiest worker has."""
    samples = job.training.batch_tokens // job.model.context
    return max(1, -(-samples // workers))


def _aim(job: JobSpec) -> int:
    """The micro-batch without a limit of memory: on a GPU too, since nothing is known of it."""
    return max(1, _CPU_TOKENS // job.model.context)


def choose(job: JobSpec, network: Network | None, room: Room) -> Choice:
    """Decide stage and micro-batch; both as the job says where it does."""
    if network is None or room.usable_bytes is None:
        return _unlimited(job, network, room)
    search = _Search(job, network, room)
    stages = possible_stages(job)
    for tokens in (_COMFORTABLE_TOKENS, 1) if job.training.workers.gpus else (1,):
        for stage in stages:
            micro_batch = search.largest(stage)
            if micro_batch is not None and micro_batch >= search.enough(tokens):
                return search.chosen(stage, micro_batch)
    return search.least()


def possible_stages(job: JobSpec) -> list[int]:
    """What a job leaves open, least communication first."""
    train = job.training
    if train.zero.stage != "auto":
        return [train.zero.stage]
    first = 1 if train.zero.offload.optimizer == "cpu" or train.precision == "fp16" else 0
    if (
        "nvme" in (train.zero.offload.optimizer, train.zero.offload.parameters)
        or train.zero.offload.parameters == "cpu"
    ):
        first = 3
    last = 3 if can_shard(train) else 0
    return list(range(min(first, last), last + 1))


def _unlimited(job: JobSpec, network: Network | None, room: Room) -> Choice:
    """Without the model's size or the workers' memory: what the job says, else what is usual."""
    stages = possible_stages(job)
    alone = room.workers == 1 and 0 in stages
    stage = 0 if alone else min(max(_STAGE_UNKNOWN, stages[0]), stages[-1])
    micro_batch, accumulation = cut_step(job, room.workers)
    missing = "the size of the model is not known" if network is None else "the memory of the workers is not known"
    why = [
        f"ZeRO stage {stage}: {_set_or(job, 'one worker has nothing to shard' if alone else missing)}",
        f"micro-batch {micro_batch}: "
        + ("set in the job" if job.training.micro_batch else f"about {_CPU_TOKENS:,} tokens a pass, as {missing}"),
        _accumulation_said(job, room.workers, micro_batch, accumulation),
    ]
    warnings = [f"{missing}: nothing says whether the job fits"]
    if network is not None:
        option = "--gpu-memory" if job.training.workers.gpus else "--memory"
        warnings[0] += f"; give {option}, or run the plan where the workers are"
    choice = Choice(stage, micro_batch, accumulation, why=why, warnings=warnings)
    return choice if network is None else _with_memory(choice, _case(job, network, room, stage, micro_batch), room)


def _set_or(job: JobSpec, reason: str) -> str:
    return "set in the job" if job.training.zero.stage != "auto" else reason


def _accumulation_said(job: JobSpec, workers: int, micro_batch: int, accumulation: int) -> str:
    share = _largest_share(job, workers)
    return f"accumulation {accumulation}: {share} sample(s) a step and worker, {micro_batch} at a time"


def _case(job: JobSpec, network: Network, room: Room, stage: int, micro_batch: int) -> Case:
    _, accumulation = _cut(job, _largest_share(job, room.workers), micro_batch)
    return Case(network=network, workers=room.workers, stage=stage, micro_batch=micro_batch, accumulation=accumulation)


def _with_memory(choice: Choice, case: Case, room: Room) -> Choice:
    """The choice with what it takes; a probe's peak where there is one."""
    return Choice(
        choice.stage,
        choice.micro_batch,
        choice.accumulation,
        memory=measured_memory(case, room.probe),
        host_bytes=host_bytes(case),
        why=choice.why,
        warnings=choice.warnings,
    )


def measured_memory(case: Case, probe: Probe | None) -> Memory:
    """The memory by formula; its peak moved by what a probe of the same workers and stage found beside the formula."""
    memory = memory_of(case)
    if probe is None or probe.peak_bytes is None or (probe.workers, probe.stage) != (case.workers, case.stage):
        return memory
    passes = -(-case.micro_batch * case.accumulation // probe.micro_batch)
    there = replace(case, micro_batch=probe.micro_batch, accumulation=passes)
    return memory.model_copy(update={"peak": max(0, memory.peak + probe.peak_bytes - memory_of(there).peak)})


class _Search:
    """What fits, of the micro-batches that a job leaves open."""

    def __init__(self, job: JobSpec, network: Network, room: Room) -> None:
        self._job, self._network, self._room = job, network, room
        self._share = _largest_share(job, room.workers)
        self._usable = room.usable_bytes or 0

    def _peak(self, stage: int, micro_batch: int) -> int:
        return measured_memory(self._at(stage, micro_batch), self._room.probe).peak

    def _at(self, stage: int, micro_batch: int) -> Case:
        return _case(self._job, self._network, self._room, stage, micro_batch)

    def candidates(self) -> list[int]:
        """Micro-batches, largest first: the job's alone, or all that cut the share into equal passes as they can be."""
        if self._job.training.micro_batch:
            return [min(self._job.training.micro_batch, self._share)]
        tokens = _GPU_TOKENS if self._job.training.workers.gpus else _CPU_TOKENS
        most = min(self._share, max(1, tokens // (self._job.model.context * self._network.rows)))
        if not self._job.training.workers.gpus:
            return [most >> power for power in range(most.bit_length())]
        sizes = {1 << power for power in range(most.bit_length())} | {3 << power for power in range(most.bit_length())}
        if most == self._share:
            sizes.add(most)
        fitting = [size for size in sizes if size <= most]
        # A size that leaves the last pass half empty is worse than a smaller one that comes out even.
        return sorted(fitting, key=lambda size: (self._waste(size) > 0.1, -size))

    def _waste(self, size: int) -> float:
        """Share of the step's passes that would be empty."""
        return 1.0 - self._share / (size * -(-self._share // size))

    def largest(self, stage: int) -> int | None:
        """The best micro-batch that fits."""
        return next((size for size in self.candidates() if self._peak(stage, size) <= self._usable), None)

    def enough(self, tokens: int) -> int:
        """Samples that such a pass has at least; no more than there are, or than the job says."""
        return min(self._share, max(1, tokens // self._job.model.context), max(self.candidates()))

    def chosen(self, stage: int, micro_batch: int) -> Choice:
        """The choice and its reasons."""
        case = self._at(stage, micro_batch)
        memory = measured_memory(case, self._room.probe)
        why = [
            f"ZeRO stage {stage}: {self._stage_said(stage, memory)}",
            f"micro-batch {micro_batch}: {self._micro_batch_said(stage, micro_batch)}",
            _accumulation_said(self._job, self._room.workers, micro_batch, case.accumulation),
        ]
        made = Choice(stage, micro_batch, case.accumulation, why=why, warnings=self._host_warnings(case))
        return _with_memory(made, case, self._room)

    def _stage_said(self, stage: int, memory: Memory) -> str:
        need = f"{human_bytes(memory.peak)} of the {human_bytes(self._usable)} that a worker can fill"
        if self._job.training.zero.stage != "auto":
            return f"set in the job; it takes {need}"
        if stage == 0 and self._room.workers == 1:
            return f"one worker has nothing to shard; it takes {need}"
        below = [s for s in possible_stages(self._job) if s < stage]
        if not below:
            return f"the least communication, and it takes {need}"
        return f"the lowest that fits; it takes {need}, {self._needs(below)}"

    def _needs(self, stages: list[int]) -> str:
        smallest = min(
            self.enough(_COMFORTABLE_TOKENS if self._job.training.workers.gpus else 1), max(self.candidates())
        )
        needs = [f"stage {s} {human_bytes(self._peak(s, smallest))}" for s in stages]
        return f"where {' and '.join(needs)} would be needed for a micro-batch of {smallest}"

    def _micro_batch_said(self, stage: int, micro_batch: int) -> str:
        if self._job.training.micro_batch:
            return "set in the job" if micro_batch == self._job.training.micro_batch else "all samples of a worker"
        if micro_batch == self._share:
            return "all samples that a worker has in a step, in one pass"
        larger = [size for size in self.candidates() if size > micro_batch]
        too_large = [size for size in larger if self._peak(stage, size) > self._usable]
        if too_large:
            size = min(too_large)
            return f"{size} would take {human_bytes(self._peak(stage, size))} of {human_bytes(self._usable)}"
        if larger:
            return f"{larger[0]} would fit too, but leave the last of a step's passes part empty"
        tokens = micro_batch * self._job.model.context
        return f"{tokens:,} tokens a pass: more would not be faster"

    def _host_warnings(self, case: Case) -> list[str]:
        need, usable = host_bytes(case), self._room.usable_host_bytes
        what = f"{human_bytes(need)} of host memory a worker (offload, and the copy for a checkpoint)"
        if usable is None:
            offloads = states(case).host > 0
            return [f"it takes {what}; how much there is, is not known"] if offloads else []
        return [] if need <= usable else [f"it takes {what}, {human_bytes(usable)} are there"]

    def least(self) -> Choice:
        """Nothing fits: the smallest need, what is missing, and what would help."""
        size = min(self.candidates())
        stage = min(possible_stages(self._job), key=lambda s: self._peak(s, size))
        case, memory = self._at(stage, size), measured_memory(self._at(stage, size), self._room.probe)
        need = f"{human_bytes(memory.peak)} a worker, {human_bytes(self._usable)} can be filled"
        said = f"it does not fit: stage {stage} with a micro-batch of {size} takes {need}"
        why = [
            f"ZeRO stage {stage}: {_set_or(self._job, 'the smallest need, though it does not fit')}",
            f"micro-batch {size}: " + ("set in the job" if self._job.training.micro_batch else "the smallest"),
            _accumulation_said(self._job, self._room.workers, size, case.accumulation),
            f"{said}; {self._remedy(stage, size)}",
        ]
        made = Choice(stage, size, case.accumulation, why=why, warnings=[why[-1], *self._host_warnings(case)])
        return _with_memory(made, case, self._room)

    def _remedy(self, stage: int, size: int) -> str:
        from orchestrator.plan.remedies import remedy

        return remedy(self._at(stage, size), self._usable)
