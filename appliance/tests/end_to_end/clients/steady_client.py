#!/usr/bin/python3
"""A libnbd client that keeps one connection and never opens another.

usage: steady_client.py URI

Writes and reads blocks with many requests in flight, checks every block that it reads against what
was answered, until its standard input ends, and then says how long the server was silent at most,
in milliseconds.
"""

import random
import struct
import sys
import threading
import time

import nbd

BLOCK = 4096
BLOCKS = 4096
IN_FLIGHT = 16


def content(block, version):
    return struct.pack("<QQ", block, version) * (BLOCK // 16)


class Client:
    def __init__(self, handle):
        self.handle = handle
        self.choice = random.Random(1)
        self.versions = {}  # block -> last version that was answered
        self.busy = set()
        self.version = 0
        self.longest = 0.0
        self.answered = time.monotonic()

    def note(self):
        now = time.monotonic()
        self.longest = max(self.longest, now - self.answered)
        self.answered = now

    def write(self, block):
        self.version += 1
        version = self.version
        data = nbd.Buffer.from_bytearray(bytearray(content(block, version)))

        def completed(error):
            if error.value != 0:
                sys.exit(f"write of block {block}: error {error.value}")
            self.versions[block] = version
            self.busy.discard(block)
            self.note()
            return 1

        self.handle.aio_pwrite(data, block * BLOCK, completion=completed)

    def read(self, block):
        buffer = nbd.Buffer(BLOCK)

        def completed(error):
            if error.value != 0:
                sys.exit(f"read of block {block}: error {error.value}")
            version = self.versions.get(block)
            wanted = bytes(BLOCK) if version is None else content(block, version)
            if bytes(buffer.to_bytearray()) != wanted:
                sys.exit(f"block {block} is wrong")
            self.busy.discard(block)
            self.note()
            return 1

        self.handle.aio_pread(buffer, block * BLOCK, completion=completed)

    def run(self, told):
        said = False
        while not told.is_set() or self.handle.aio_in_flight() > 0:
            while not told.is_set() and self.handle.aio_in_flight() < IN_FLIGHT:
                block = self.choice.randrange(BLOCKS)
                if block in self.busy:
                    continue
                self.busy.add(block)
                if self.choice.randrange(2):
                    self.write(block)
                else:
                    self.read(block)
            self.handle.poll(-1)
            if not said and len(self.versions) > 100:
                said = True
                print("working", flush=True)
        for block in sorted(self.versions):
            found = bytes(self.handle.pread(BLOCK, block * BLOCK))
            if found != content(block, self.versions[block]):
                sys.exit(f"block {block} is wrong at the end")


def main():
    (uri,) = sys.argv[1:]
    handle = nbd.NBD()
    handle.connect_uri(uri)
    client = Client(handle)
    told = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), told.set()), daemon=True).start()
    client.run(told)
    print(f"longest silence {client.longest * 1000:.0f} ms", flush=True)
    handle.shutdown()


main()
