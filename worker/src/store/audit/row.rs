//! A row as the laws see it, from whichever backend.

/// A row's columns, by their place.
pub(in crate::store) struct Row(pub Vec<Cell>);

pub(in crate::store) enum Cell {
    Null,
    Text(String),
    Integer(i64),
    Bytes(Vec<u8>),
}

impl Row {
    /// `None`: null.
    pub(super) fn text(&self, place: usize) -> Option<&str> {
        match self.0.get(place) {
            Some(Cell::Text(text)) => Some(text),
            _ => None,
        }
    }

    pub(super) fn integer(&self, place: usize) -> Option<i64> {
        match self.0.get(place) {
            Some(Cell::Integer(integer)) => Some(*integer),
            _ => None,
        }
    }

    pub(super) fn bytes(&self, place: usize) -> Option<&[u8]> {
        match self.0.get(place) {
            Some(Cell::Bytes(bytes)) => Some(bytes),
            _ => None,
        }
    }

    /// A text that is part of a key: never null.
    pub(super) fn key(&self, place: usize) -> &str {
        self.text(place).unwrap_or_default()
    }

    /// Which kind of row it is, of a walk's.
    pub(super) fn part(&self, place: usize) -> usize {
        self.integer(place).and_then(|part| usize::try_from(part).ok()).unwrap_or(usize::MAX)
    }
}
