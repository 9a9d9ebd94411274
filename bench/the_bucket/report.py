"""The lines of the report: what was found beside what it is held against."""

import statistics


class Report:
    """Collects pairs of values round by round and compares their medians."""

    def __init__(self):
        self.lines, self.facts = [], {}

    def ratio(self, name, unit, ours, peer, floor=None, ceiling=None, against="plain SDK loop"):
        """Medians of both sides and their ratio, which has a floor or a ceiling."""
        ours_median, peer_median = statistics.median(ours), statistics.median(peer)
        ratio = ours_median / peer_median if peer_median else float("inf")
        self.lines.append({
            "name": name, "unit": unit, "ours": ours, "peer": peer, "against": against,
            "ours_median": ours_median, "peer_median": peer_median, "value": ratio,
            "floor": floor, "ceiling": ceiling,
        })

    def value(self, name, unit, ours, floor=None, ceiling=None):
        """The worst of all rounds against a floor or a ceiling."""
        worst = min(ours) if ceiling is None else max(ours)
        self.lines.append({
            "name": name, "unit": unit, "ours": ours, "value": worst, "floor": floor,
            "ceiling": ceiling,
        })

    def below(self):
        """Names of the lines that do not hold."""
        return [line["name"] for line in self.lines if not holds(line)]

    def markdown(self):
        out = ["| what | taipand | held against | ratio or value | bar |", "|---|---|---|---|---|"]
        out += [row(line) for line in self.lines]
        out += [""] + [f"* {name}: {value}" for name, value in self.facts.items()]
        missed = self.below()
        if missed:
            out += ["", "Not held:"] + [f"* {name}" for name in missed]
        return "\n".join(out) + "\n"


def holds(line):
    floor, ceiling = line["floor"], line["ceiling"]
    return (floor is None or line["value"] >= floor) and \
        (ceiling is None or line["value"] <= ceiling)


def row(line):
    bar = f"≥ {line['floor']}" if line["floor"] is not None else f"≤ {line['ceiling']}"
    verdict = bar if holds(line) else f"{bar}: NOT HELD"
    if "peer" not in line:
        shown = ", ".join(f"{value:.5g}" for value in line["ours"])
        worst = f"{line['value']:.5g} {line['unit']}".strip()
        return f"| {line['name']} | {shown} | | **{worst}** | {verdict} |"
    ours = f"{line['ours_median']:.1f} {line['unit']}"
    peer = f"{line['against']}: {line['peer_median']:.1f} {line['unit']}"
    return f"| {line['name']} | {ours} | {peer} | **{line['value']:.2f}** | {verdict} |"
