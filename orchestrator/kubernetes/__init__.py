"""Pure: JobSpec + Plan -> manifests for KubeRay, as plain data. Knows neither Ray nor a Kubernetes.

`render` tells the story; `sizes` says what pods ask for, `pods` and `clusters` what KubeRay runs, `surroundings` what
these need around them; `write` is what touches a disk.
"""

from orchestrator.kubernetes.render import Render, manifests, render
from orchestrator.kubernetes.values import Target
from orchestrator.kubernetes.write import write_files

__all__ = ["Render", "Target", "manifests", "render", "write_files"]
