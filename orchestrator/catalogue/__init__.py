"""What a store holds, in one SQLite file beside it: runs, the commands that drove them, datasets, exports, services.

The folders are the truth. The file only remembers what was read of them, so that thousands need not be read again.
"""
