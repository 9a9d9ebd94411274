"""S3 servers, the plain SDK loop beside them, and taipand on a bucket."""

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from first_light.clients import run
from first_light.servers import BenchError, Taipand

BUCKET = "taipan"
START_SECONDS_MAX = 60
KEYS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "benchbenchbench"}
WEED_PORTS = {"s3": 18333, "master": 19333, "volume": 19340, "filer": 18888, "admin": 13646}


class S3Server:
    """A process that serves S3 with one bucket."""

    def __init__(self, name, home):
        self.name = name
        self.home = Path(home)
        self.home.mkdir(parents=True, exist_ok=True)
        self.process, self.address = None, None

    def spawn(self, command, ready):
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command], stdout=log, stderr=log, cwd=self.home,
                env={**os.environ, **KEYS, "S3_BUCKET": BUCKET}, start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while not ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                tail = (self.home / "log").read_text(errors="replace")[-2000:]
                self.stop()
                raise BenchError(f"{self.name} did not start:\n{tail}")
            time.sleep(0.02)
        return self

    def url(self, prefix):
        """As --backend and --url take it."""
        return f"s3://{BUCKET}/{prefix}?endpoint=http://{self.address}&region=us-east-1" \
            "&path_style=true"

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
        if self.process:
            self.process.wait()
        shutil.rmtree(self.home, ignore_errors=True)


# What a second or two of a limited upload brings, and more.
PREPARED_MIB = 512


class FakeS3(S3Server):
    """The in-memory server of taipan-bench: it counts, and faults can be scripted."""

    def __init__(self, bench, home, aside=False):
        """With aside it runs only when nothing else would, as a server elsewhere takes no CPU."""
        super().__init__("fake-s3", home)
        port_file = self.home / "ports"
        self.admin = None
        command = [bench, "fake-s3", "--bucket", BUCKET, "--port-file", port_file]
        if aside:
            command = ["chrt", "--idle", "0", *command, "--prepared-mib", PREPARED_MIB]
        self.spawn(command, port_file.exists)
        if aside:
            # Where the kernel groups sessions for the scheduler, a class holds only within one.
            group = Path(f"/proc/{self.process.pid}/autogroup")
            if group.exists():
                group.write_text("19")
        self.address, self.admin = port_file.read_text().split()

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        url = f"http://{self.admin}/-/{path}"
        request = urllib.request.Request(url, data=data, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def bandwidth(self, bytes_per_second):
        """Limits what is put, all puts together; 0 for no limit."""
        action = {"kind": "bandwidth", "bytes_per_second": bytes_per_second}
        rule = {"verbs": ["put", "upload_part"], "action": action}
        self.faults([rule] if bytes_per_second else [])

    def faults(self, rules):
        """Replaces the rules by which requests fail or are slow."""
        self.call("PUT", "faults", {"rules": rules})

    def reset(self):
        self.call("DELETE", "stats")

    def stats(self):
        return self.call("GET", "stats")

    def requests(self):
        return sum(self.stats()["requests"].values())


class SeaweedFs(S3Server):
    """SeaweedFS as tools/setup installs it, on a folder of its own."""

    def __init__(self, weed, home):
        super().__init__("SeaweedFS", home)
        ports = WEED_PORTS
        self.address = f"127.0.0.1:{ports['s3']}"
        data = self.home / "data"
        data.mkdir(exist_ok=True)
        command = [weed, "mini", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        command += ["-master.telemetry=false", "-webdav=false", "-admin.ui=false"]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        command += [f"-{name}.port={port}" for name, port in ports.items()]
        self.spawn(command, self.ready)

    def ready(self):
        said = (self.home / "log").read_text(errors="replace")
        if "All enabled components are running" not in said:
            return False
        try:
            urllib.request.urlopen(f"http://{self.address}/{BUCKET}", timeout=2).close()
        except urllib.error.HTTPError as refusal:
            return refusal.code == 403  # it wants a signature: it serves
        except OSError:
            return False
        return True


def sdk_loop(options, server, prefix, rw, objects, requests=None, concurrency=None):
    """taipan-bench s3-loop; its report."""
    command = [options.bench, "s3-loop", "--url", server.url(prefix), "--rw", rw, "--json"]
    command += ["--concurrency", concurrency or options.concurrency, "--objects", objects]
    if requests:
        command += ["--requests", requests]
    # The keys are the test servers' own and are no secret.
    os.environ.update(KEYS)
    return json.loads(run(command))


def taipand(options, server, home, volume_bytes, extra=(), prefix="bench", wal=None, port=None):
    """A daemon with directories of its own and its chunks in the bucket."""
    extra = ["--backend", server.url(prefix), *options.extra, *extra]
    wal = wal or options.wal_bytes
    port = port or options.metrics_port
    return Taipand(options.taipand, home, wal, volume_bytes, port, extra, KEYS)
