//! The table of plugins/README.md: a line for each architecture, a column for each plugin and data type.

use crate::claims::{Claim, Plugin};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

const BEGIN: &str = "<!-- parity: `make parity` writes what stands below -->\n";
const END: &str = "<!-- parity: end -->\n";
/// Data types from the widest to the narrowest: the order of columns.
const DTYPES: [&str; 5] = ["f32", "f16", "bf16", "int8", "int4"];
/// What stands where nothing is claimed.
const NOTHING: &str = "–";
/// What stands where a claim was not measured.
const UNKNOWN: &str = "?";

/// Plugin and data type.
type Column = (String, String);

#[derive(Default)]
struct Line {
    models: BTreeSet<String>,
    longest: usize,
    /// What is claimed; the largest difference, where it was measured.
    worst: BTreeMap<Column, Option<f32>>,
}

/// What is claimed and, as far as it was measured, how far it is off.
pub(crate) struct Table {
    columns: Vec<Column>,
    lines: BTreeMap<String, Line>,
}

// === impl Table ===

impl Table {
    /// Claims, none of them measured.
    pub(crate) fn new(plugins: &[Plugin], claims: &[Claim<'_>]) -> Self {
        let columns = plugins.iter().flat_map(|plugin| {
            let dtypes = &plugin.card().dtypes;
            let unknown = dtypes.iter().find(|one| !DTYPES.contains(&one.as_str()));
            assert_eq!(unknown, None, "a data type without a column");
            let has = |dtype: &&str| dtypes.iter().any(|one| one == dtype);
            let dtypes = DTYPES.into_iter().filter(has);
            dtypes.map(|dtype| (plugin.name.clone(), dtype.to_owned()))
        });
        let columns = columns.collect();
        let mut lines = BTreeMap::<String, Line>::new();
        for claim in claims {
            let line = lines.entry(claim.folder.architecture.clone()).or_default();
            line.models.insert(claim.folder.name.clone());
            line.longest = line.longest.max(claim.folder.longest());
            line.worst.insert(column(claim), None);
        }
        Self { columns, lines }
    }

    /// Of several models in a line the farthest counts.
    pub(crate) fn measured(&mut self, claim: &Claim<'_>, worst: f32) {
        let line = self.lines.get_mut(&claim.folder.architecture).unwrap();
        let known = line.worst.get_mut(&column(claim)).unwrap();
        *known = Some(known.map_or(worst, |known| known.max(worst)));
    }

    /// Puts the table in place of the one that stands there.
    pub(crate) fn write(&self, readme: &Path) {
        let text = std::fs::read_to_string(readme).unwrap();
        let (before, _, after) = parts(&text);
        let text = format!("{before}{BEGIN}\n{}\n{END}{after}", self.text());
        std::fs::write(readme, text).unwrap();
    }

    /// Checks that the table there has just these lines, columns and claims, and no figure beyond its tolerance. The
    /// figures are those of the CPU on which `make parity` ran: kernels round differently on others.
    #[track_caller]
    pub(crate) fn check(&self, readme: &Path, tolerance: impl Fn(&str) -> f32) {
        let text = std::fs::read_to_string(readme).unwrap();
        let (_, stated, _) = parts(&text);
        let shape = |text: &str| -> Vec<_> { text.trim().lines().map(without_figures).collect() };
        assert_eq!(
            shape(stated),
            shape(&self.text()),
            "plugins/README.md has another table: run `make parity`"
        );
        for line in stated.trim().lines().skip(2) {
            let cells = line.trim_matches('|').split('|').rev();
            for (cell, (_, dtype)) in cells.zip(self.columns.iter().rev()) {
                let is_within = figure(cell.trim()).is_none_or(|worst| worst <= tolerance(dtype));
                assert!(is_within, "{cell} for {dtype} in {line}");
            }
        }
    }

    fn text(&self) -> String {
        let mut text = String::from("| architecture | models | longest row |");
        let mut named = None;
        for (plugin, dtype) in &self.columns {
            // Its name stands over its first column alone.
            _ = match named.replace(plugin) {
                Some(before) if before == plugin => write!(text, " {dtype} |"),
                _ => write!(text, " `{plugin}` {dtype} |"),
            };
        }
        _ = writeln!(text, "\n|---|---|---|{}", "---|".repeat(self.columns.len()));
        for (architecture, line) in &self.lines {
            let (n_models, longest) = (line.models.len(), line.longest);
            _ = write!(text, "| `{architecture}` | {n_models} | {longest} |");
            for column in &self.columns {
                _ = match line.worst.get(column) {
                    None => write!(text, " {NOTHING} |"),
                    Some(None) => write!(text, " {UNKNOWN} |"),
                    Some(Some(worst)) => write!(text, " {worst:.0e} |"),
                };
            }
            text.push('\n');
        }
        text
    }
}

fn column(claim: &Claim<'_>) -> Column {
    (claim.plugin.name.clone(), claim.dtype.clone())
}

/// What stands before, between and behind the marks.
fn parts(text: &str) -> (&str, &str, &str) {
    let (before, rest) = text.split_once(BEGIN).expect("the table's first mark");
    let (table, after) = rest.split_once(END).expect("the table's last mark");
    (before, table, after)
}

/// A line with every figure unknown.
fn without_figures(line: &str) -> String {
    let cells = line.split('|').map(|cell| match figure(cell.trim()) {
        Some(_) => format!(" {UNKNOWN} "),
        None => cell.to_owned(),
    });
    cells.collect::<Vec<_>>().join("|")
}

/// `3e-6`; counts have no exponent.
fn figure(cell: &str) -> Option<f32> {
    let is_figure = cell.starts_with(|first: char| first.is_ascii_digit()) && cell.contains('e');
    is_figure.then(|| cell.parse().expect("a figure"))
}
