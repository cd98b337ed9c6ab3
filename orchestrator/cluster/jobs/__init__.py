"""Jobs handed to a cluster through Ray's Jobs API: packed (packing), submitted, watched, told of; and begun (drive)."""
