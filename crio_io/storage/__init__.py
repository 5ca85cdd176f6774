"""Image content on disk: partial downloads, unpacked layers, and the root filesystems mounted from them."""
