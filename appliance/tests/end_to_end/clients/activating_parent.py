#!/usr/bin/python3
"""Starts a program with listening sockets, as a service manager does (sd_listen_fds(3)).

usage: activating_parent.py NAME=ADDRESS:PORT|NAME=PATH ... -- PROGRAM ARGUMENT ...

The program takes this process's place, so its process is the one that LISTEN_PID names.
"""

import fcntl
import os
import socket
import sys

FIRST = 3


def listen(place):
    if place.startswith("/"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(place)
    else:
        address, port = place.rsplit(":", 1)
        listener = socket.socket(socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, int(port)))
    listener.listen(128)
    return listener


def main():
    split = sys.argv.index("--")
    wanted = [argument.split("=", 1) for argument in sys.argv[1:split]]
    program = sys.argv[split + 1 :]
    listeners = [listen(place) for _, place in wanted]
    # Above the numbers that they are to have, so that none is overwritten.
    above = FIRST + len(listeners)
    moved = [fcntl.fcntl(listener, fcntl.F_DUPFD, above) for listener in listeners]
    for place, descriptor in enumerate(moved):
        os.dup2(descriptor, FIRST + place, inheritable=True)
        os.set_inheritable(descriptor, False)
    os.environ["LISTEN_FDS"] = str(len(wanted))
    os.environ["LISTEN_FDNAMES"] = ":".join(name for name, _ in wanted)
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.execv(program[0], program)


main()
