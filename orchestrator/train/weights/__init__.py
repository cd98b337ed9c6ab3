"""First weights, and low-rank updates of them."""
