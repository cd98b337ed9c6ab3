"""The passes of preparation: each function here runs as a task on the cluster, and writes one unit of work."""
