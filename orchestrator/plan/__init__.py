"""Pure: JobSpec + ClusterView -> Plan. Same job and view, same bytes; starts nothing, reads nothing.

`make` tells the story, `choose` decides; `states`, `activations` and `memory` have the formulas, `speed` the prices.
Home of `ClusterView` too (`values`), so that a plan is made and tested with no cluster.
"""

from orchestrator.plan.capacity import (
    require_capacity,
    require_one_sample,
    require_vocabulary,
    shortage,
    workers_that_fit,
)
from orchestrator.plan.choose import cut_step
from orchestrator.plan.make import make_plan
from orchestrator.plan.sizes import human_bytes, parse_bytes
from orchestrator.plan.values import (
    STAGES,
    ClusterView,
    Memory,
    Node,
    Plan,
    Probe,
    Stage,
    StageStatus,
    Status,
)

__all__ = [
    "STAGES",
    "ClusterView",
    "Memory",
    "Node",
    "Plan",
    "Probe",
    "Stage",
    "StageStatus",
    "Status",
    "cut_step",
    "human_bytes",
    "make_plan",
    "parse_bytes",
    "require_capacity",
    "require_one_sample",
    "require_vocabulary",
    "shortage",
    "workers_that_fit",
]
