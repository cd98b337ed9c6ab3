"""A decoder's forward pass on a CPU, in C++: compiled on the machine that runs it, and kept there."""
