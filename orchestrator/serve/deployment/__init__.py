"""On Ray Serve: the replicas, and deploying them."""
