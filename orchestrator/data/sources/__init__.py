"""Where documents come from: listing files, unpacking them, reading rows."""
