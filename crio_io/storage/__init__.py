"""Image content on disk: partial downloads, unpacked layers, documents, and the root filesystems mounted from them."""
