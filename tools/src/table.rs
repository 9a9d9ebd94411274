//! Aligned text for people: tables with headings, and lists of labelled values.

/// On which side a column's texts are flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// Texts.
    Left,
    /// Numbers.
    Right,
}

/// A table; columns are as wide as their widest text and two spaces apart.
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings and no rows.
    pub(crate) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row of as many texts as there are columns.
    pub(crate) fn row<const N: usize>(&mut self, texts: [String; N]) {
        assert_eq!(N, self.columns.len(), "a row has one text per column");
        self.rows.push(texts.into());
    }

    /// The table as lines, each ended by a line feed, none with trailing spaces.
    pub(crate) fn render(&self) -> String {
        let headings: Vec<String> = self.columns.iter().map(|c| c.0.to_owned()).collect();
        let lines: Vec<&Vec<String>> = std::iter::once(&headings).chain(&self.rows).collect();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|i| lines.iter().map(|l| width(&l[i])).max().unwrap_or(0))
            .collect();
        let mut out = String::new();
        for line in lines {
            let mut text = String::new();
            for (i, cell) in line.iter().enumerate() {
                if i > 0 {
                    text.push_str("  ");
                }
                let gap = " ".repeat(widths[i] - width(cell));
                match self.columns[i].1 {
                    Align::Left => text.extend([cell.as_str(), &gap]),
                    Align::Right => text.extend([gap.as_str(), cell]),
                }
            }
            out.push_str(text.trim_end());
            out.push('\n');
        }
        out
    }
}

/// Labelled values, one a line, the values flush; a value of several lines stays in its column.
#[derive(Default)]
pub(crate) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Adds a value under a label.
    pub(crate) fn add(&mut self, label: impl Into<String>, value: impl Into<String>) -> &mut Self {
        self.0.push((label.into(), value.into()));
        self
    }

    /// Adds a value if there is one.
    pub(crate) fn add_some(&mut self, label: &str, value: Option<impl Into<String>>) -> &mut Self {
        if let Some(value) = value {
            self.add(label, value);
        }
        self
    }

    /// The lines.
    pub(crate) fn render(&self) -> String {
        let label_width = self.0.iter().map(|(l, _)| width(l)).max().unwrap_or(0);
        let mut out = String::new();
        for (label, value) in &self.0 {
            let mut head = label.as_str();
            for line in value.split('\n') {
                let gap = " ".repeat(label_width - width(head) + 2);
                out.push_str(format!("{head}{gap}{line}").trim_end());
                out.push('\n');
                head = "";
            }
        }
        out
    }
}

/// Columns a text takes; names may hold any letters, all taken as one column wide.
fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_with_letters_of_any_script() {
        let mut table = Table::new(&[
            ("NAME", Align::Left),
            ("SIZE", Align::Right),
            ("STATE", Align::Left),
        ]);
        table.row(["münchen/a".into(), "10 GiB".into(), "online".into()]);
        table.row(["b".into(), "1.5 TiB".into(), "".into()]);
        assert_eq!(
            table.render(),
            "NAME          SIZE  STATE\n\
             münchen/a   10 GiB  online\n\
             b          1.5 TiB\n"
        );
    }

    #[test]
    fn values_of_several_lines_stay_in_their_column() {
        let mut fields = Fields::default();
        fields
            .add("name", "v")
            .add("listeners", "a\nb")
            .add_some("cause", None::<String>);
        assert_eq!(
            fields.render(),
            "name       v\nlisteners  a\n           b\n"
        );
    }
}
