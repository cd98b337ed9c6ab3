"""Ray clusters: see what is there (view), start or join one (connect), hand it a job (submit), check a machine (doctor)."""
