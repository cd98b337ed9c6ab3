"""What went wrong, what follows, and how it is said."""
