"""DeepSpeed workers under Ray Train: launch (driver side), worker, loop, engine."""
