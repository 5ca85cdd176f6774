"""crioctl: a command line for any CRI v1 endpoint, with the commands of CRI-O's crioctl and the names of crictl."""
