//! The one table: a name in each row, and columns of figures. It is never wider than the terminal: columns leave in an order that each table states, and
//! then names are shortened in their middle.

use anstyle::Style;

use super::lines::{self, Stream, columns};
use super::{DIM, more_rows};

/// Columns between two columns.
const GAP: usize = 2;
/// Names are not shortened below this.
const SHORTEST: usize = 8;

/// A column of a table.
#[derive(Clone, Copy)]
pub(super) struct Column {
    heading: &'static str,
    is_left: bool,
    /// Where there is no room, the column with the lowest number leaves first; 0 stays.
    leaves: u8,
    /// What its figures are, for those who never read of them.
    means: &'static str,
}

/// A column of numbers.
pub(super) const fn number(heading: &'static str) -> Column {
    Column { heading, is_left: false, leaves: 0, means: "" }
}

/// A column of words.
pub(super) const fn word(heading: &'static str) -> Column {
    Column { heading, is_left: true, leaves: 0, means: "" }
}

impl Column {
    pub(super) const fn leaves(self, leaves: u8) -> Self {
        Self { leaves, ..self }
    }

    pub(super) const fn means(self, means: &'static str) -> Self {
        Self { means, ..self }
    }
}

enum Row {
    Cells(String, Vec<String>, Style),
    /// A line through all columns.
    Line(String),
}

pub(super) struct Table {
    key: String,
    columns: Vec<Column>,
    rows: Vec<Row>,
}

impl Table {
    /// `key` is the heading of the names.
    pub(super) fn new(key: impl Into<String>, columns: impl Into<Vec<Column>>) -> Self {
        Self { key: key.into(), columns: columns.into(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, name: impl Into<String>, cells: impl Into<Vec<String>>) {
        self.coloured(Style::new(), name, cells);
    }

    pub(super) fn coloured(&mut self, style: Style, name: impl Into<String>, cells: impl Into<Vec<String>>) {
        self.rows.push(Row::Cells(name.into(), cells.into(), style));
    }

    /// Rows that are not shown, of so many.
    pub(super) fn more(&mut self, all: usize, usually: usize) {
        if let Some(text) = more_rows(all, usually) {
            self.rows.push(Row::Line(text));
        }
    }

    /// Prints it, and what its columns are.
    pub(super) fn print(&self) {
        let width = lines::width(Stream::Out);
        let shown = self.shown(width);
        for line in self.lines(width, &shown) {
            anstream::println!("{line}");
        }
        let of = |at: &usize| self.columns.get(*at).filter(|column| !column.means.is_empty());
        let meanings: Vec<String> =
            shown.iter().filter_map(of).map(|column| format!("{}: {}", column.heading, column.means)).collect();
        let left: Vec<&str> = (0..self.columns.len())
            .filter(|at| !shown.contains(at))
            .filter_map(|at| self.columns.get(at).map(|column| column.heading))
            .collect();
        if !meanings.is_empty() {
            lines::say(&format!("{DIM}{}{DIM:#}", meanings.join("; ")));
        }
        if !left.is_empty() {
            lines::say(&format!("{DIM}no room here for: {}{DIM:#}", left.join(", ")));
        }
    }

    fn cells(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.rows.iter().filter_map(|row| match row {
            Row::Cells(name, cells, _) => Some((name.as_str(), cells.as_slice())),
            Row::Line(_) => None,
        })
    }

    /// The width of a column.
    fn wide(&self, at: usize) -> usize {
        let heading = self.columns.get(at).map_or(0, |column| columns(column.heading));
        self.cells().filter_map(|(_, cells)| cells.get(at)).map(|cell| columns(cell)).fold(heading, usize::max)
    }

    fn name_wide(&self) -> usize {
        self.cells().map(|(name, _)| columns(name)).fold(columns(&self.key), usize::max)
    }

    /// The columns that there is room for.
    fn shown(&self, width: Option<usize>) -> Vec<usize> {
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        let Some(width) = width else { return shown };
        let total = |shown: &[usize]| self.name_wide() + shown.iter().map(|at| GAP + self.wide(*at)).sum::<usize>();
        while total(&shown) > width {
            let leaves = |at: &usize| self.columns.get(*at).map_or(0, |column| column.leaves);
            let next = shown.iter().copied().filter(|at| leaves(at) > 0).min_by_key(leaves);
            let Some(next) = next else { break };
            shown.retain(|at| *at != next);
        }
        shown
    }

    fn lines(&self, width: Option<usize>, shown: &[usize]) -> Vec<String> {
        let figures: usize = shown.iter().map(|at| GAP + self.wide(*at)).sum();
        let room = width.map_or(usize::MAX, |width| width.saturating_sub(figures).max(SHORTEST));
        let names = self.name_wide().min(room);
        let line = |name: &str, cell: &dyn Fn(usize) -> String| {
            let mut line = shortened(name, names);
            line += &" ".repeat(names - columns(&line));
            for &at in shown {
                let (text, wide) = (cell(at), self.wide(at));
                let space = " ".repeat(wide - columns(&text));
                let is_left = self.columns.get(at).is_some_and(|column| column.is_left);
                line += &" ".repeat(GAP);
                line += &if is_left { text + &space } else { space + &text };
            }
            line.trim_end().to_owned()
        };
        let heading = line(&self.key, &|at| self.columns.get(at).map_or(String::new(), |c| c.heading.to_owned()));
        let rows = self.rows.iter().map(|row| match row {
            Row::Cells(name, cells, style) => {
                let text = line(name, &|at| cells.get(at).cloned().unwrap_or_default());
                format!("{style}{text}{style:#}")
            }
            Row::Line(text) => lines::wrapped(text, width),
        });
        std::iter::once(heading).chain(rows).collect()
    }
}

/// A name with its middle left out, where it is longer than that. Its end says more than its beginning.
fn shortened(name: &str, most: usize) -> String {
    if columns(name) <= most {
        return name.to_owned();
    }
    let fits = |text: &str, room: usize| columns(text) <= room;
    let (head, tail) = (most / 4, most - 1 - most / 4);
    let start = (0..=name.len()).rev().find(|at| name.get(..*at).is_some_and(|text| fits(text, head))).unwrap_or(0);
    let end = (0..=name.len()).find(|at| name.get(*at..).is_some_and(|text| fits(text, tail))).unwrap_or(name.len());
    format!("{}…{}", name.get(..start).unwrap_or_default(), name.get(end..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new("name", [number("a").leaves(2), word("bb").leaves(1), number("c")]);
        table.row("one", ["1".to_owned(), "x".to_owned(), "10".to_owned()]);
        table.more(10, 3);
        table.row("a/long/path/of/a/merge", ["22".to_owned(), "yy".to_owned(), "3".to_owned()]);
        table
    }

    fn at(width: Option<usize>) -> Vec<String> {
        let table = table();
        table.lines(width, &table.shown(width))
    }

    #[test]
    fn columns_leave_in_order_and_then_names_are_shortened() {
        assert_eq!(
            at(None),
            [
                "name                     a  bb   c",
                "one                      1  x   10",
                "… and 7 more (--verbose shows all)",
                "a/long/path/of/a/merge  22  yy   3"
            ]
        );
        assert_eq!(at(Some(34)), at(None));
        assert_eq!(at(Some(33))[3], "a/long/path/of/a/merge  22   3");
        assert_eq!(at(Some(29))[3], "a/long/path/of/a/merge   3");
        assert_eq!(at(Some(20))[3], "a/lo…/of/a/merge   3");
        for width in 40..100 {
            assert!(at(Some(width)).iter().all(|line| columns(line) <= width), "{width}");
        }
    }

    #[test]
    fn names_are_cut_at_characters() {
        assert_eq!(shortened("äöüäöüäöü", 5), "ä…äöü");
        assert_eq!(columns(&shortened("層層層層層層", 8)), 8 - 1);
    }
}
