#!/usr/bin/python3
"""A libnbd client that stays alive while its server dies and comes back.

usage: reopening_writer.py SOCKET EXPORT

Writes blocks with many requests in flight and keeps a ledger of what was answered. When the
connection dies it opens a new one, sends FLUSH *without writing anything again*, says "flushed" and
waits for a line. Then it reads everything back: each block holds its last answered write, or one
that was in flight on the dead connection.
"""

import random
import struct
import sys
import time

import nbd

BLOCK = 4096
BLOCKS = 65536
IN_FLIGHT = 64
RECONNECT_SECONDS = 180


def content(block, version):
    return struct.pack("<QQ", block, version) * (BLOCK // 16)


def connect(socket, export):
    deadline = time.monotonic() + RECONNECT_SECONDS
    while True:
        handle = nbd.NBD()
        handle.set_export_name(export)
        try:
            handle.connect_unix(socket)
            return handle
        except nbd.Error:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


class Ledger:
    def __init__(self):
        self.answered = {}  # block -> last version that was answered
        self.in_flight = {}  # block -> version sent and not answered

    def expected(self, block):
        versions = {self.answered.get(block)}
        if block in self.in_flight:
            versions.add(self.in_flight[block])
        return versions


def write_until_dead(handle, ledger, seed):
    """Writes until the server is gone. Never two writes to one block at the same time."""
    choice = random.Random(seed)
    version = 0
    said = False

    def on_answer(block, written):
        def completed(error):
            if error.value != 0:
                return 1
            ledger.answered[block] = written
            del ledger.in_flight[block]
            return 1

        return completed

    try:
        while True:
            while handle.aio_in_flight() < IN_FLIGHT:
                block = choice.randrange(BLOCKS)
                if block in ledger.in_flight:
                    continue
                version += 1
                ledger.in_flight[block] = version
                data = nbd.Buffer.from_bytearray(bytearray(content(block, version)))
                handle.aio_pwrite(data, block * BLOCK, completion=on_answer(block, version))
            handle.poll(-1)
            if len(ledger.answered) > 1000 and not said:
                said = True
                print("writing", flush=True)
    except nbd.Error:
        if not handle.aio_is_dead() and not handle.aio_is_closed():
            raise


def verify(handle, ledger):
    wrong = 0
    for block in sorted(set(ledger.answered) | set(ledger.in_flight)):
        found = bytes(handle.pread(BLOCK, block * BLOCK))
        versions = ledger.expected(block)
        wanted = [bytes(BLOCK) if v is None else content(block, v) for v in versions]
        if found not in wanted:
            wrong += 1
            if wrong <= 10:
                held = struct.unpack("<QQ", found[:16])
                print(f"block {block}: expected version of {versions}, holds {held}")
    if wrong:
        sys.exit(f"{wrong} blocks are wrong")


def main():
    socket, export = sys.argv[1:]
    ledger = Ledger()
    write_until_dead(connect(socket, export), ledger, seed=1)
    print(f"dead: {len(ledger.answered)} blocks answered, {len(ledger.in_flight)} in flight")
    handle = connect(socket, export)
    handle.flush()
    print("flushed", flush=True)
    if sys.stdin.readline().strip() != "verify":
        sys.exit("told to stop")
    verify(connect(socket, export), ledger)
    print("verified", flush=True)


main()
