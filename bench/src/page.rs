//! A self-contained HTML page: style, headings, tables; nothing is loaded from elsewhere.

use std::fmt::Write;

use crate::machine::Machine;
use crate::plot::escaped;

const STYLE: &str = "
:root { color-scheme: light dark; --bg: #ffffff; --fg: #1c1e21; --dim: #6a7077; --line: #d9dce0;
 --c0: #1f6fb4; --c1: #c8501e; --c2: #2f8a3d; --c3: #9a3fa0; --c4: #8a6d00; --c5: #c02a4c;
 --c6: #007f86; --c7: #55606b; }
@media (prefers-color-scheme: dark) { :root { --bg: #16181b; --fg: #e4e6e8; --dim: #9aa1a9;
 --line: #363b41; --c0: #6cb2f0; --c1: #f09a6a; --c2: #7fcf8a; --c3: #d792dc; --c4: #d8bd4e;
 --c5: #f2809a; --c6: #5fcdd3; --c7: #aab4be; } }
body { background: var(--bg); color: var(--fg); font: 15px/1.45 system-ui, sans-serif;
 max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; margin: .6rem 0 1.2rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: left; }
td.n, th.n { text-align: right; } .dim, figcaption { color: var(--dim); }
.bad { color: var(--c5); font-weight: 600; }
div.wide { overflow-x: auto; }
figure { margin: 1rem 0; } svg { width: 100%; height: auto; }
svg text { fill: var(--dim); font-size: 11px; } svg .x { text-anchor: middle; }
svg .y { text-anchor: end; dominant-baseline: middle; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg polyline, svg circle { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
.legend span::before { content: '\\2014\\00a0'; font-weight: 700; }
.legend span { margin-right: 1.2rem; }
";

/// A page under construction.
pub(crate) struct Page {
    out: String,
}

/// What stands in a cell.
pub(crate) enum Cell {
    /// Text.
    Text(String),
    /// A number, at the right.
    Number(String),
    /// Text that must be seen.
    Bad(String),
}

impl Page {
    /// A page with its heading.
    pub(crate) fn new(title: &str) -> Self {
        let title = escaped(title);
        let mut colours = String::new();
        for colour in 0..crate::plot::COLOURS {
            let rule = format_args!(
                "svg .c{colour} {{ stroke: var(--c{colour}); }} \
                 .k{colour} {{ color: var(--c{colour}); }}\n"
            );
            colours.write_fmt(rule).expect("a String takes every text");
        }
        let out = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{title}</title>\n<style>{STYLE}{colours}</style></head>\n\
             <body><h1>{title}</h1>\n"
        );
        Self { out }
    }

    /// A heading of a section.
    pub(crate) fn heading(&mut self, text: &str) {
        self.html(&format!("<h2>{}</h2>\n", escaped(text)));
    }

    /// A paragraph.
    pub(crate) fn paragraph(&mut self, text: &str) {
        self.html(&format!("<p>{}</p>\n", escaped(text)));
    }

    /// Something that must be seen.
    pub(crate) fn alarm(&mut self, text: &str) {
        self.html(&format!("<p class=\"bad\">{}</p>\n", escaped(text)));
    }

    /// What is HTML already.
    pub(crate) fn html(&mut self, html: &str) {
        self.out.push_str(html);
    }

    /// A table; a column is headed as its first cell is aligned.
    pub(crate) fn table(&mut self, head: &[&str], rows: &[Vec<Cell>]) {
        self.html("<div class=\"wide\"><table><thead><tr>");
        for (index, text) in head.iter().enumerate() {
            let first = rows.first().and_then(|row| row.get(index));
            let class = match first {
                Some(Cell::Number(_)) => " class=\"n\"",
                _ => "",
            };
            self.html(&format!("<th{class}>{}</th>", escaped(text)));
        }
        self.html("</tr></thead><tbody>\n");
        for row in rows {
            self.html("<tr>");
            for cell in row {
                let (class, text) = match cell {
                    Cell::Text(text) => ("", text),
                    Cell::Number(text) => (" class=\"n\"", text),
                    Cell::Bad(text) => (" class=\"bad\"", text),
                };
                self.html(&format!("<td{class}>{}</td>", escaped(text)));
            }
            self.html("</tr>\n");
        }
        self.html("</tbody></table></div>\n");
    }

    /// The facts of a machine and more of them, by name.
    pub(crate) fn facts(&mut self, machine: &Machine, more: &[(&str, String)]) {
        let gibibytes = machine.memory_bytes as f64 / f64::from(1 << 30);
        let mut facts = vec![
            ("CPU", format!("{} × {}", machine.cpus, machine.cpu)),
            ("memory", format!("{gibibytes:.1} GiB")),
            ("kernel", machine.kernel.clone()),
        ];
        if let Some(governor) = &machine.governor {
            facts.push(("governor", governor.clone()));
        }
        facts.extend(more.iter().map(|(name, value)| (*name, value.clone())));
        let rows = facts.into_iter();
        let rows = rows.map(|(name, value)| vec![Cell::Text(name.to_owned()), Cell::Text(value)]);
        self.table(&["machine", ""], &rows.collect::<Vec<_>>());
    }

    /// The whole page.
    pub(crate) fn finish(mut self) -> String {
        self.html("</body></html>\n");
        self.out
    }
}

/// A number in a cell.
pub(crate) fn number(value: f64, digits: usize) -> Cell {
    Cell::Number(format!("{value:.digits$}"))
}

/// Text in a cell.
pub(crate) fn text(text: impl Into<String>) -> Cell {
    Cell::Text(text.into())
}
