"""Labelled rows: what each kind of data must hold, and how it becomes token ids and labels."""
