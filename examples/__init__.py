"""Networks of one's own, each trained by a job file: `transactions`, `digits`, `recommender`."""
