"""The report: medians, ratios, floors."""

from first_light.servers import GIB, KIB, MIB

RECOVERY_SECONDS_MAX = 3
INDEX_BYTES_MAX = 8
BURST_SHARE_MIN = 0.95
LATENCIES = ("p50_us", "p99_us", "p999_us", "max_us")


def rows(bench, lines):
    """One row a line and client: (line, client, IOPS of taipand, {peer: IOPS})."""
    for line in lines:
        for client in ("own", "fio"):
            ours = bench.median(line.name, client, "taipand", "iops")
            if ours is None:
                continue
            names = [*line.floors, *line.extra]
            peers = {name: bench.median(line.name, client, name, "iops") for name in names}
            yield line, client, ours, {name: iops for name, iops in peers.items() if iops}


def markdown(bench, lines, facts):
    """The report, and the lines below their floor."""
    out = [
        "| line | client | taipand | p50 / p99 / p99.9 / max µs (of the FLUSH, if any) | peers: "
        "rate, taipand's ratio (floor)"
        " | server CPU µs per request: data cores / process; peers | client CPU |",
        "|---|---|---|---|---|---|---|",
    ]
    below = []
    for line, client, ours, peers in rows(bench, lines):
        def of(key, target="taipand", line=line, client=client):
            return bench.median(line.name, client, target, key) or 0.0

        beside, cpu = [], [f"{of('server_data_us'):.2f} / {of('server_us'):.2f}"]
        for name, theirs in peers.items():
            ratio, floor = ours / theirs, line.floors.get(name)
            text = f"{name} {rate(theirs, line)}, **{ratio:.2f}**"
            if floor is not None:
                text += f" (≥ {floor}{'' if ratio >= floor else ': BELOW'})"
                if ratio < floor:
                    below.append(f"{line.name} ({client}): {ratio:.2f} × {name}, floor {floor}")
            beside.append(text)
            if name != "raw":
                cpu.append(f"{name} {of('server_us', name):.2f}")
        latencies = " / ".join(f"{of(key):.0f}" for key in LATENCIES)
        out.append(
            f"| {line.name} | {client} | {rate(ours, line)} | {latencies} | {'; '.join(beside)}"
            f" | {'; '.join(cpu)} | {of('client_cpu_percent'):.0f} % |"
        )
    found, thin = shares(bench, lines)
    below += thin
    out += [""] + [f"* {text}" for text in found] + memory_text(facts)
    if facts.get("recovery", {}).get("median_seconds", 0) >= RECOVERY_SECONDS_MAX:
        below.append("recovery took too long")
    index = facts.get("index", {}).get("index_bytes_per_block")
    if index and index > INDEX_BYTES_MAX:
        below.append("the index is larger than allowed")
    if below:
        out += ["", "Below the floor:"] + [f"* {text}" for text in below]
    return "\n".join(out) + "\n", below


def rate(iops, line):
    if line.load.block in ("64k", "256k"):
        return f"{iops * int(line.load.block[:-1]) * KIB / 1e6:.0f} MB/s"
    return f"{iops / 1e3:.1f} k/s"


def shares(bench, lines):
    """How much of the bursts was in the WAL and of the reads in memory: (all texts, bad ones)."""
    found, bad = [], []
    for line in lines:
        written, memory = [], []
        for result in bench.results:
            counters = result.get("counters")
            if not counters or result["line"] != line.name or result["client"] != "own":
                continue
            pages = counters.get("taipan_wal_write_bytes_total", 0.0)
            pages -= counters.get("taipan_wal_writes_total", 0.0) * 4 * KIB  # batch headers
            if "burst" in line.name:
                written.append(min(pages / result["bytes"], 1.0))
            blocks = counters.get("taipan_read_blocks_total", 0.0)
            here = counters.get('taipan_read_blocks_total{source="memory"}', 0.0)
            if blocks and line.load.direction == "read":
                memory.append(here / blocks)
        if written:
            text = f"{line.name}: {min(written):.1%} of the answered bytes were in the WAL (least)"
            found.append(text)
            if min(written) < BURST_SHARE_MIN:
                bad.append(text)
        if memory:
            text = f"{line.name}: {min(memory):.1%} of the blocks came from batch memory (least)"
            found.append(text)
    return found, bad


def memory_text(facts):
    out = []
    index = facts.get("index", {})
    if index.get("index_bytes_per_block"):
        out.append(
            f"* index: {index['index_bytes_per_block']:.2f} bytes per mapped block"
            f" ({index['mapped_blocks']} blocks at random fill)"
        )
    for name, key in (("after the bursts", "memory"), ("after the sustained run", "index")):
        sizes = facts.get(key, {})
        if "VmHWM" in sizes:
            budget = sizes.get("budget_bytes")
            stated = f", budget {budget / MIB:.0f} MiB" if budget else ""
            out.append(
                f"* memory {name}: resident {sizes['VmRSS'] / MIB:.0f} MiB, largest"
                f" {sizes['VmHWM'] / MIB:.0f} MiB{stated}"
            )
    if "recovery" in facts:
        found = facts["recovery"]
        used = found.get("wal_used_bytes")
        amount = f" with {used / GIB:.2f} GiB of WAL in use" if used else ""
        out.append(
            f"* recovery{amount}: first read after {found['median_seconds']:.2f} s"
            f" (all: {', '.join(f'{s:.2f}' for s in found['seconds'])})"
        )
    return out
