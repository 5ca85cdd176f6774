"""The two CRI services. A handler reads its message, asks the driver, and writes the answer."""
