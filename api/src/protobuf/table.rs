//! The numbers of all fields, read once from their text.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::DecodeError;
use crate::schema::{self, Definition, Field};

static TEXT: &str = include_str!("../../openapi/wire.txt");

static TABLE: LazyLock<HashMap<&'static str, Message>> =
    LazyLock::new(|| TEXT.lines().filter_map(read_message).collect());

/// The fields of a message, by number.
#[derive(Debug, Default)]
pub(super) struct Message {
    slots: Vec<(u32, Slot)>,
}

/// What stands under a number.
#[derive(Debug)]
pub(super) enum Slot {
    Field {
        field: &'static Field,
        /// Whether zero is told from absence.
        keeps_zero: bool,
    },
    /// A message whose fields are the outer's own in JSON.
    Inline(Message),
}

impl Message {
    pub(super) fn slot(&self, number: u32) -> Option<&Slot> {
        let at = self.slots.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        self.slots.get(at).map(|(_, slot)| slot)
    }

    #[cfg(test)]
    pub(super) fn slots(&self) -> &[(u32, Slot)] {
        &self.slots
    }

    /// Puts a slot where the path of numbers leads; `None` where that is taken.
    fn insert(&mut self, path: &str, slot: Slot) -> Option<()> {
        let (number, rest) = path.split_once('.').map_or((path, None), |(number, rest)| (number, Some(rest)));
        let number = number.parse().ok()?;
        let found = self.slots.binary_search_by_key(&number, |(number, _)| *number);
        let Some(rest) = rest else {
            self.slots.insert(found.err()?, (number, slot));
            return Some(());
        };
        let at = found.unwrap_or_else(|at| {
            self.slots.insert(at, (number, Slot::Inline(Message::default())));
            at
        });
        match self.slots.get_mut(at) {
            Some((_, Slot::Inline(inner))) => inner.insert(rest, slot),
            _ => None,
        }
    }
}

/// The fields of a type, by its full name.
pub(super) fn message(name: &str) -> Result<&'static Message, DecodeError> {
    TABLE.get(name).ok_or_else(|| DecodeError::NoSuchType(name.to_owned()))
}

fn read_message(line: &'static str) -> Option<(&'static str, Message)> {
    let mut words = line.split(' ');
    let name = words.next()?;
    let definition = schema::definition(name)?;
    let mut message = Message::default();
    for word in words {
        read_slot(word, definition, &mut message);
    }
    Some((name, message))
}

fn read_slot(word: &str, definition: &'static Definition, message: &mut Message) -> Option<()> {
    let (name, path) = word.split_once('=')?;
    let (path, keeps_zero) = path.strip_suffix('?').map_or((path, false), |path| (path, true));
    message.insert(path, Slot::Field { field: definition.field(name)?, keeps_zero })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(message: &Message) -> usize {
        let each = message.slots().iter().map(|(_, slot)| match slot {
            Slot::Field { .. } => 1,
            Slot::Inline(inner) => count(inner),
        });
        each.sum()
    }

    #[test]
    fn every_field_of_every_type_has_a_number_of_its_own() {
        for line in TEXT.lines() {
            let (name, words) = line.split_once(' ').unwrap_or((line, ""));
            let definition = schema::definition(name).unwrap();
            let message = message(name).unwrap();
            let words: Vec<&str> = words.split(' ').filter(|word| !word.is_empty()).collect();
            assert_eq!(count(message), words.len(), "{name}");
            let named = |field: &Field| words.iter().any(|word| word.split('=').next() == Some(field.name));
            for field in definition.fields() {
                // The body says these once, in front of the object.
                assert!(named(field) || matches!(field.name, "apiVersion" | "kind"), "{name} {}", field.name);
            }
        }
    }

    #[test]
    fn everything_that_is_served_can_be_read() {
        fn visit(name: &'static str, seen: &mut Vec<&'static str>) {
            if seen.contains(&name) {
                return;
            }
            seen.push(name);
            assert!(message(name).is_ok(), "{name}");
            for field in schema::definition(name).unwrap().fields() {
                if let Some(inner) = field.ty.definition() {
                    visit(inner.name, seen);
                }
            }
        }
        let mut seen = Vec::new();
        for resource in crate::resource::RESOURCES {
            visit(resource.definition, &mut seen);
        }
        visit("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions", &mut seen);
    }
}
