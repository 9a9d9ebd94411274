"""The clients that load a server, and the keeping of what they measured."""

import json
import os
import statistics
import subprocess
import sys

from first_light.servers import BenchError, CpuMeter, Raw

CLIENT_SECONDS_MAX = 600


def run(command):
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=CLIENT_SECONDS_MAX,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"{command[0]} failed ({done.returncode}): {done.stderr[-2000:]}")
    return done.stdout


class Load:
    """One workload: what is asked, how deep, and either for how long or how much."""

    def __init__(self, rw, block, depth, area, seconds=None, fsync=0, end_fsync=False):
        self.rw, self.block, self.depth, self.area = rw, block, depth, area
        self.seconds, self.fsync, self.end_fsync = seconds, fsync, end_fsync

    @property
    def direction(self):
        return "read" if "read" in self.rw else "write"


def own_client(bench, server, load, seed, uri=None, offset=0):
    """taipan-bench; the result in the form of `measure`."""
    command = [bench, "run", uri or server.uri(), "--rw", load.rw, "--bs", load.block, "--json"]
    command += ["--iodepth", load.depth, "--size", load.area, "--seed", seed]
    command += ["--offset", offset]
    command += ["--progress", "never"]
    if load.seconds:
        command += ["--runtime", load.seconds]
    if load.fsync:
        command += ["--fsync", load.fsync]
    if load.end_fsync:
        command += ["--end-fsync"]
    report = json.loads(run(command))
    kind = next(k for k in report["kinds"] if k["kind"] == load.direction)
    # Behind a write that is followed by a FLUSH the latency that counts is the FLUSH's.
    timed = "flush" if load.fsync else load.direction
    latency = next(k for k in report["kinds"] if k["kind"] == timed)["latency_us"]
    return {
        "iops": kind["iops"],
        "megabytes_per_second": kind["megabytes_per_second"],
        "bytes": kind["bytes"],
        "requests": report["requests"],
        "p50_us": latency["p50"],
        "p99_us": latency["p99"],
        "p999_us": latency["p999"],
        "max_us": latency["max"],
        "client_cpu_percent": report["client_cpu"]["percent_of_one_core"],
    }


def fio_client(target, load, seed):
    """fio with its nbd engine, or with io_uring on the raw file."""
    command = ["fio", "--name=x", f"--rw={load.rw}", f"--bs={load.block}"]
    command += [f"--iodepth={load.depth}", "--output-format=json", f"--randseed={seed}"]
    command += ["--norandommap", "--randrepeat=0"]
    if isinstance(target, Raw):
        command += ["--ioengine=io_uring", "--direct=1", f"--filename={target.path}"]
    else:
        command += ["--ioengine=nbd", f"--uri={target.uri()}"]
    command += [f"--size={load.area}"]
    if load.seconds:
        command += ["--time_based", f"--runtime={load.seconds}"]
    if load.fsync:
        command += [f"--fsync={load.fsync}"]
    if load.end_fsync:
        command += ["--end_fsync=1"]
    output = run(command)
    job = json.loads(output[output.index("{") :])["jobs"][0]
    side = job[load.direction]
    timed = job["sync"]["lat_ns"] if load.fsync else side["clat_ns"]
    percentiles = timed.get("percentile", {})
    return {
        "iops": side["iops"],
        "megabytes_per_second": side["bw_bytes"] / 1e6,
        "bytes": side["io_bytes"],
        "requests": side["total_ios"] + job.get("sync", {}).get("total_ios", 0),
        "p50_us": percentiles.get("50.000000", 0) / 1e3,
        "p99_us": percentiles.get("99.000000", 0) / 1e3,
        "p999_us": percentiles.get("99.900000", 0) / 1e3,
        "max_us": timed["max"] / 1e3,
        "client_cpu_percent": job["usr_cpu"] + job["sys_cpu"],
    }


class Bench:
    """Measures loads on targets and keeps every result."""

    def __init__(self, options):
        self.options = options
        self.results = []
        self.seed = 1

    def measure(self, line, client, target, load):
        """One run; a dict with rates, latencies and CPU time of both sides."""
        if self.options.drain:
            target.settle()
        self.seed += 1
        if isinstance(target, Raw):
            result = fio_client(target, load, self.seed)
        else:
            counters = target.counters()
            meter = CpuMeter(target.pid)
            if client == "fio":
                result = fio_client(target, load, self.seed)
            else:
                result = own_client(self.options.bench, target, load, self.seed)
            data, process = meter.spent()
            after = target.counters()
            requests = max(result["requests"], 1)
            result["server_data_us"] = data * 1e6 / requests
            result["server_us"] = process * 1e6 / requests
            result["counters"] = {k: v - counters.get(k, 0.0) for k, v in after.items()}
        result.update(line=line, client=client, target=target.name)
        self.results.append(result)
        note(f"  {target.name:14} {client:5} {result['iops']:9.0f} IOPS")
        if self.options.drain:
            # What it does behind its answers is not to be in the way of the next target.
            target.settle()
            os.sync()
        return result

    def rounds(self, line, client, targets, load):
        """All targets in turn, round after round, the first one another every time."""
        for number in range(self.options.rounds):
            turn = number % len(targets)
            for target in targets[turn:] + targets[:turn]:
                self.measure(line, client, target, load)

    def median(self, line, client, target, key):
        values = [
            r[key]
            for r in self.results
            if (r["line"], r["client"], r["target"]) == (line, client, target) and key in r
        ]
        return statistics.median(values) if values else None


def note(text):
    print(text, file=sys.stderr, flush=True)
