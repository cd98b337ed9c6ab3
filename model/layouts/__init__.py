"""How each family is laid out in Hugging Face folders: settings and names. `model.huggingface` is the way in."""
