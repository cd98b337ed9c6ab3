"""To be imported by a process that stands by to train with DeepSpeed (`cluster/preload.py`)."""

from orchestrator.train.engine.deepspeed_engine import import_deepspeed

import_deepspeed()
