"""The servers that are measured, and the CPU time and memory they take."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
VOLUME = "vol0"
START_SECONDS_MAX = 120
IDLE_SECONDS_MAX = 60
SETTLE_SECONDS_MAX = 180


class BenchError(Exception):
    """A measurement could not be made."""


def thread_cpu_seconds(pid):
    """CPU seconds of every thread, as {thread id: (name, seconds)}."""
    threads = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            name = (task / "comm").read_text().strip()
            spent_ns = int((task / "schedstat").read_text().split()[0])
        except (OSError, IndexError):
            continue  # the thread ended meanwhile
        threads[task.name] = (name, spent_ns / 1e9)
    return threads


def process_cpu_seconds(pid):
    """CPU seconds of a whole process, threads that have ended included."""
    return time.clock_gettime((~pid << 3) | 2)  # CLOCK_PROCESS_CPUTIME_ID of another process


class CpuMeter:
    """CPU seconds of a server from now on."""

    def __init__(self, pid):
        self.pid = pid
        self.threads, self.process = thread_cpu_seconds(pid), process_cpu_seconds(pid)

    def spent(self):
        """Seconds since then: (data-core threads, whole process)."""
        data = 0.0
        for thread, (name, seconds) in thread_cpu_seconds(self.pid).items():
            if name.startswith("data-"):
                data += seconds - self.threads.get(thread, (name, 0.0))[1]
        return data, process_cpu_seconds(self.pid) - self.process


def wait_idle(server):
    """Waits until a server uses no CPU any more."""
    deadline = time.monotonic() + IDLE_SECONDS_MAX
    while time.monotonic() < deadline:
        meter = CpuMeter(server.pid)
        time.sleep(0.3)
        if meter.spent()[1] < 0.02:
            return
    raise BenchError(f"{server.name} does not become idle")


def memory_bytes(pid):
    """Resident set now and at its largest."""
    sizes = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in ("VmRSS", "VmHWM", "RssAnon", "RssShmem"):
            sizes[key] = int(value.split()[0]) * KIB
    return sizes


class Server:
    """A process that serves one export over a unix socket."""

    def __init__(self, name, command, sock, log, environment=None):
        self.name = name
        self.socket = Path(sock)
        self.log = Path(log)
        self.command = [str(part) for part in command]
        self.environment = {**os.environ, **(environment or {})}
        self.process = None

    def start(self, ready=None):
        self.socket.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=self.environment, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while not (ready or self.accepts)():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                tail = self.log.read_text(errors="replace")[-2000:]
                raise BenchError(f"{self.name} did not start:\n{tail}")
            time.sleep(0.01)
        return self

    def accepts(self):
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(1)
                probe.connect(str(self.socket))
                return probe.recv(8) == b"NBDMAGIC"
        except OSError:
            return False

    @property
    def pid(self):
        return self.process.pid

    def uri(self):
        return f"nbd+unix:///?socket={self.socket}"

    def settle(self):
        """Waits until the server is idle, so that it does not disturb what is measured next."""

    def counters(self):
        """Counters to be compared before and after a measurement."""
        return {}

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
        if self.process:
            self.process.wait()


class UnixHttp(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path, timeout):
        super().__init__("taipan", timeout=timeout)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Taipand(Server):
    """The daemon on a data directory of its own."""

    def __init__(self, binary, home, wal, volume_bytes, port, extra=(), environment=None):
        self.data = Path(home) / "data"
        self.runtime = Path(tempfile.mkdtemp(prefix="first-light-", dir="/dev/shm"))
        self.runtime.chmod(0o700)
        self.metrics = f"127.0.0.1:{port}"
        command = [binary, "--data", self.data, "--runtime-dir", self.runtime, "--no-listen"]
        command += ["--volume", f"{VOLUME}:{volume_bytes}", "--wal-size", str(wal)]
        command += ["--metrics", self.metrics, *extra]
        Path(home).mkdir(parents=True, exist_ok=True)
        log = Path(home) / "taipand.log"
        super().__init__("taipand", command, self.data / "nbd.sock", log, environment)

    def uri(self, volume=VOLUME):
        return f"nbd+unix:///{volume}?socket={self.socket}"

    def start(self, ready=None):
        return super().start(ready or self.healthy)

    def healthy(self):
        try:
            with urllib.request.urlopen(f"http://{self.metrics}/healthz", timeout=2) as answer:
                return answer.status == 200 and self.accepts()
        except OSError:
            return False

    def call(self, method, path, body=None, timeout=SETTLE_SECONDS_MAX):
        connection = UnixHttp(self.data / "control.sock", timeout)
        headers = {"Content-Type": "application/json"} if body else {}
        try:
            connection.request(method, path, body and json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status >= 300:
            raise BenchError(f"{method} {path}: {answer.status} {text[:500]!r}")
        return json.loads(text) if text else None

    def status(self):
        return self.call("GET", "/v1/status")

    def settle(self):
        """All is packed, and what a start leaves to be done beside the first requests is done."""
        self.call("POST", "/v1/drain")
        wait_idle(self)

    def counters(self):
        """Sums of the counters over their labels, and `name{source}` for block sources."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        sums = {}
        for line in text.splitlines():
            if line.startswith("#"):
                continue
            series, _, value = line.rpartition(" ")
            name = series.partition("{")[0]
            wanted = name.startswith("taipan_wal_write") or name.startswith("taipan_read_blocks")
            if wanted and "latency" not in name:
                sums[name] = sums.get(name, 0.0) + float(value)
                if "source=" in series:
                    sums[series] = float(value)
        return sums

    def clean_up(self):
        self.kill()
        shutil.rmtree(self.runtime, ignore_errors=True)


class Raw:
    """The device itself: a preallocated file through fio, io_uring and O_DIRECT."""

    name = "raw"

    def __init__(self, path):
        self.path = Path(path)

    def settle(self):
        pass


class StandIn(Server):
    """nbdkit file in the place of taipand, to try this script out."""

    def __init__(self, place, size):
        place = Path(place)
        place.mkdir(parents=True, exist_ok=True)
        preallocate(place / "disk", size)
        sock = place / "nbd.sock"
        command = ["nbdkit", "-f", "-U", sock, "file", place / "disk"]
        super().__init__("taipand", command, sock, place / "log")

    def clean_up(self):
        self.kill()


def make_ours(options, place, wal, volume_bytes, extra=()):
    if options.stand_in:
        return StandIn(place, volume_bytes)
    port = options.metrics_port
    return Taipand(options.taipand, place, wal, volume_bytes, port, [*options.extra, *extra])


def nbdkit_memory(home, size):
    sock = Path(home) / "memory.sock"
    command = ["nbdkit", "-f", "-U", sock, "memory", str(size)]
    return Server("nbdkit memory", command, sock, Path(home) / "memory.log")


def nbdkit_file(options, home, size):
    del options
    sock, disk = Path(home) / "file.sock", Path(home) / "file.disk"
    preallocate(disk, size)
    command = ["nbdkit", "-f", "-U", sock, "file", disk]
    return Server("nbdkit file", command, sock, Path(home) / "file.log")


def preallocate(path, size):
    """A file whose extents are written, so that overwrites touch no metadata."""
    if path.exists() and path.stat().st_size == size:
        return
    piece = os.urandom(MIB)
    with path.open("wb") as file:
        for at in range(0, size, MIB):
            file.write(piece[: min(MIB, size - at)])
        file.flush()
        os.fsync(file.fileno())
