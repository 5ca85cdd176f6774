"""Measures this runtime side by side with containerd, and with the same work by bare commands. Start: `make bench`."""
