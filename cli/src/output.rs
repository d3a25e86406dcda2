//! What a command says at its end: an exit code, an error that names what to do, tables that fit the terminal.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use comfy_table::{Cell, ContentArrangement, Table, presets};
use serde::Serialize;

/// Widest table where nobody says how wide the output is, in columns.
const WIDTH_DEFAULT: u16 = 100;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Yes,
    /// No, or a difference.
    No,
    /// Wrong usage or configuration.
    Usage,
    /// It could not be told.
    Unknown,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Yes => 0,
            Exit::No => 1,
            Exit::Usage => 2,
            Exit::Unknown => 3,
        })
    }
}

/// Why a command could not do its work.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub error: anyhow::Error,
}

impl Failure {
    /// The caller or the configuration is wrong.
    pub fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self { exit: Exit::Usage, error: error.into() }
    }

    /// Nobody's fault that is known here.
    pub fn unknown(error: impl Into<anyhow::Error>) -> Self {
        Self { exit: Exit::Unknown, error: error.into() }
    }
}

pub type Outcome = Result<Exit, Failure>;

/// Prints a line; that nobody reads it any more (a closed pipe) is no error of the command.
pub fn line(text: impl Display) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Prints a value for programs, on one line.
pub fn json(value: &impl Serialize) {
    line(serde_json::to_string(value).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}")));
}

/// A table of rows under a header, as wide as the terminal and no wider. Cells wrap, whatever they hold.
pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    if !std::io::stdout().is_terminal() {
        table.set_width(WIDTH_DEFAULT);
    }
    table.set_header(header.map(Cell::new));
    for row in rows {
        table.add_row(row.map(|text| Cell::new(printable(&text))));
    }
    table
}

/// Text from outside with what could steer a terminal made visible.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() && letter != '\n' { '\u{fffd}' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_outside_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[31mb\r\nc"), "a\u{fffd}[31mb\u{fffd}\nc");
    }
}
