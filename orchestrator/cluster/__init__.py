"""Ray: what is there (view), start or join (connect), hand over a job (submit), check a machine (doctor)."""
