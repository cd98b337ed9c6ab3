"""Real steps of a plan, measured."""
