"""A checkpoint becomes a Hugging Face folder that carries its own proof."""
