"""What a Ray worker imports before it is given work: the modules that its environment names.

The raylet has each worker import this module (`RAY_preload_python_modules`, which `connect` sets for a Ray of our own).
"""

from __future__ import annotations

import importlib
import os

VARIABLE = "SLIPWAY_PRELOAD"
"""Modules with commas between them."""

for _module in filter(None, os.environ.get(VARIABLE, "").split(",")):
    importlib.import_module(_module)
