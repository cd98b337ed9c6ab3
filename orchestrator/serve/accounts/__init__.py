"""Keys and their limits, what was used, the audit log, feedback. No torch, no Ray, no HTTP framework."""
