"""Rounds of measurements: what they start, the order of sides, the command line, the report."""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from first_light.clients import Load, note, own_client
from first_light.servers import GIB, KIB, MIB, BenchError
from the_bucket.report import Report
from the_bucket.servers import FakeS3, SeaweedFs, taipand

ROOT = Path(__file__).resolve().parent.parent.parent
TIB = 1 << 40
# Nothing is committed unless it is asked for.
HELD = ["--set", "commit.interval_seconds=3600"]


class Rounds:
    """Directories, servers and daemons of the rounds of one part; all gone at its end."""

    def __init__(self, options, home, part):
        self.options, self.place = options, Path(home) / part
        self.open, self.count = [], 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends and removes everything of this round."""
        while self.open:
            self.open.pop()()
        shutil.rmtree(self.place, ignore_errors=True)

    def next_place(self):
        self.count += 1
        return self.place / str(self.count)

    def fake(self, aside=False):
        server = FakeS3(self.options.bench, self.next_place(), aside)
        self.open.append(server.stop)
        return server

    def server(self):
        if self.options.server == "fake":
            return self.fake()
        server = SeaweedFs(self.options.weed, self.next_place())
        self.open.append(server.stop)
        return server

    def daemon(self, server, volume_bytes, extra=(), **settings):
        ours = taipand(self.options, server, self.next_place(), volume_bytes, extra, **settings)
        self.open.append(ours.clean_up)
        return ours.start()


def held(wal_bytes):
    """Settings under which half a WAL may wait for its commit."""
    return [*HELD, "--set", f"commit.pending_size={wal_bytes // 2}"]


def fill(options, daemon, amount, seed=1):
    """Writes the first bytes of the volume from front to back."""
    own_client(options.bench, daemon, Load("write", "256k", 8, amount), seed)


def in_turn(number, *sides):
    """Calls all sides, another one first in every round."""
    turn = number % len(sides)
    for side in sides[turn:] + sides[:turn]:
        side()


def size(text):
    units = {"k": KIB, "m": MIB, "g": GIB}
    lower = text.lower().removesuffix("ib").removesuffix("b")
    return int(lower.rstrip("kmg")) * units.get(lower[-1:], 1)


def parser_of_parts(description, parts, port):
    """The options that every list of parts has."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    release = ROOT / "target" / "release"
    parser.add_argument("--taipand", type=Path, default=release / "taipand")
    parser.add_argument("--bench", type=Path, default=release / "taipan-bench")
    parser.add_argument("--dir", type=Path, help="where WAL and servers' files go; the default is a"
                        " directory under target/")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each timed measurement")
    parser.add_argument("--wal-size", dest="wal_bytes", type=size, default=4 * GIB)
    parser.add_argument("--only", nargs="*", choices=list(parts), default=list(parts))
    parser.add_argument("--set", dest="sets", action="append", default=[],
                        help="setting for taipand, KEY=VALUE")
    parser.add_argument("--metrics-port", type=int, default=port)
    parser.add_argument("--json", type=Path, help="every single result")
    parser.add_argument("--markdown", type=Path, help="the report; it is also printed")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is not held")
    return parser


def parse(parser):
    options = parser.parse_args()
    options.extra = [part for item in options.sets for part in ("--set", item)]
    return options


def run_parts(options, parts, prefix):
    """Measures what was asked for, prints the report; the exit code."""
    report, error, home = Report(), None, None
    try:
        for binary in (options.bench, options.taipand):
            if not binary.exists():
                raise BenchError(f"{binary} does not exist: cargo build --release --workspace")
        parent = options.dir or ROOT / "target"
        parent.mkdir(parents=True, exist_ok=True)
        home = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        for name in options.only:
            note(name)
            with Rounds(options, home, name) as rounds:
                parts[name](options, rounds, report)
    except (BenchError, OSError, subprocess.TimeoutExpired) as failure:
        error = failure
    finally:
        if home:
            shutil.rmtree(home, ignore_errors=True)
    text = report.markdown()
    print(text)
    if options.markdown:
        options.markdown.write_text(text)
    if options.json:
        results = {"lines": report.lines, "facts": report.facts}
        options.json.write_text(json.dumps(results, indent=1))
    if error:
        print(f"error: {error}", file=sys.stderr)
    return 1 if error or (report.below() and options.check) else 0
