"""Ray: what is there (view), start or join (connect), hand over a job (jobs), check a machine (doctor)."""
