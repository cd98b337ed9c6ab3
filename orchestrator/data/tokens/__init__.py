"""Text to token ids. The home of the tokenizers library."""
