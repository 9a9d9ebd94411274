"""libnbd (1.18 or later, found by the loader) asks for the extents of some of the contexts that it
selected: BLOCK_STATUS with a payload.

asks_for_some_contexts.py URI SELECTED,… ASKED,… LENGTH: a line of JSON with what the callback got.
"""

import ctypes
import json
import sys

libnbd = ctypes.CDLL("libnbd.so.0")


class Extent(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint64), ("flags", ctypes.c_uint64)]


SEEN = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.c_uint64,
    ctypes.POINTER(Extent),
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_int),
)


class Callback(ctypes.Structure):
    _fields_ = [("callback", SEEN), ("user", ctypes.c_void_p), ("free", ctypes.c_void_p)]


libnbd.nbd_create.restype = ctypes.c_void_p
libnbd.nbd_get_error.restype = ctypes.c_char_p
libnbd.nbd_block_status_filter.argtypes = [
    ctypes.c_void_p,
    ctypes.c_uint64,
    ctypes.c_uint64,
    ctypes.c_void_p,
    Callback,
    ctypes.c_uint32,
]


def done(result):
    if result == -1:
        sys.exit(libnbd.nbd_get_error().decode())
    return result


def main():
    uri, selected, asked, length = sys.argv[1:]
    handle = ctypes.c_void_p(libnbd.nbd_create())
    for context in selected.split(","):
        done(libnbd.nbd_add_meta_context(handle, context.encode()))
    done(libnbd.nbd_connect_uri(handle, uri.encode()))
    told = {"payload": done(libnbd.nbd_can_block_status_payload(handle)), "extents": {}}

    def seen(_user, context, offset, extents, count, _error):
        found = [(extents[n].length, extents[n].flags) for n in range(count)]
        told["extents"][context.decode()] = {"offset": offset, "extents": found}
        return 0

    names = [name.encode() for name in asked.split(",")]
    names = (ctypes.c_char_p * (len(names) + 1))(*names, None)
    callback = Callback(SEEN(seen), None, None)
    done(libnbd.nbd_block_status_filter(handle, int(length), 0, names, callback, 0))
    libnbd.nbd_shutdown(handle, 0)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
