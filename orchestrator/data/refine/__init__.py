"""What is done to documents before they are trained on. Pure: text to text, and why a document was removed."""
