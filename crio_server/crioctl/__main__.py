"""Lets `python -m crio_server.crioctl` stand in for the installed command."""

from crio_server.crioctl.main import main

main()
