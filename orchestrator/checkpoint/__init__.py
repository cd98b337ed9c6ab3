"""Training checkpoints: layout and retention (pure), writer, reader."""
