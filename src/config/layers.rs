// SPDX-License-Identifier: Apache-2.0
//! Files laid over one another: the final value of each key, and where it was set.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use serde_json::{Map, Value};

use super::error::{ConfigError, Place};
use super::keys::{self, KEYS, Meaning};
use super::yaml;

/// The value of one key.
struct Entry {
    value: Value,
    origin: Origin,
}

#[derive(Clone)]
enum Origin {
    /// A file by its index, and the key's path as it is written there.
    File(usize, Vec<String>),
    Elsewhere(Place),
}

/// Files and their texts, in the order in which they were given.
#[derive(Clone)]
struct Sources(Rc<[(PathBuf, String)]>);

impl Sources {
    /// Where a value was set. Looks for the line, so that only errors pay for the search.
    fn place(&self, origin: &Origin) -> Place {
        match origin {
            Origin::Elsewhere(place) => place.clone(),
            Origin::File(file, path) => {
                let (file, text) = &self.0[*file];
                let path: Vec<&str> = path.iter().map(String::as_str).collect();
                Place::File { path: file.clone(), line: yaml::line_of(text, &path) }
            }
        }
    }
}

/// The merged settings, by section and canonical name. Null (an empty value) counts as not set.
pub(super) struct Layers {
    sources: Sources,
    entries: BTreeMap<(&'static str, &'static str), Entry>,
    warnings: Vec<String>,
}

/// A setting that was taken out, to be read or refused.
pub(super) struct Taken {
    pub value: Value,
    /// As it was written, with its section before it.
    pub key: String,
    origin: Origin,
    sources: Sources,
    secret: bool,
}

impl Taken {
    /// Where it was set.
    pub(super) fn place(&self) -> Place {
        self.sources.place(&self.origin)
    }

    /// Marks the value as one that must not be shown.
    pub(super) fn hide(&mut self) {
        self.secret = true;
    }

    /// An error that names place, key, value (unless secret) and what is `allowed`.
    pub(super) fn refuse(&self, allowed: impl Into<String>) -> ConfigError {
        const LONGEST: usize = 80;
        let mut value = if self.secret { "***".to_owned() } else { self.value.to_string() };
        if let Some((cut, _)) = value.char_indices().nth(LONGEST) {
            value.truncate(cut);
            value.push('…');
        }
        ConfigError::Value { place: self.place(), key: self.key.clone(), value, allowed: allowed.into() }
    }
}

impl Layers {
    /// Reads and merges texts, the later over the earlier.
    pub(super) fn merge(sources: Vec<(PathBuf, String)>) -> Result<Self, ConfigError> {
        let sources = Sources(sources.into());
        let mut layers = Self { sources: sources.clone(), entries: BTreeMap::new(), warnings: Vec::new() };
        let mut without_effect = Vec::new();
        let mut guest = Vec::new();
        for (file, (path, text)) in sources.0.iter().enumerate() {
            let value = yaml::read_value(text).map_err(|source| ConfigError::Syntax { path: path.clone(), source })?;
            let map = match value {
                Value::Null => Map::new(),
                Value::Object(map) => map,
                _ => return Err(ConfigError::NoMapping { path: path.clone() }),
            };
            layers.add(file, "", &[], map, &mut |ignored, name| match ignored {
                Meaning::Guest => guest.push(name),
                _ => without_effect.push(name),
            })?;
        }
        if !without_effect.is_empty() {
            layers.warn(format!("no effect here: {}", listed(without_effect)));
        }
        if !guest.is_empty() {
            layers.warn(format!("no effect here; use fix_guest instead (docs/guest-fixing.md): {}", listed(guest)));
        }
        Ok(layers)
    }

    fn add(
        &mut self,
        file: usize,
        section: &'static str,
        above: &[String],
        map: Map<String, Value>,
        ignore: &mut impl FnMut(Meaning, String),
    ) -> Result<(), ConfigError> {
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        for (written, value) in map {
            let name = keys::normalized(&written);
            let path = [above, std::slice::from_ref(&written)].concat();
            let origin = Origin::File(file, path.clone());
            let meaning = keys::meaning(section, &name);
            let canonical = match meaning {
                Meaning::Key(index) => KEYS[index].name.to_owned(),
                _ => name.clone(),
            };
            if let Some(other) = seen.insert(canonical, written.clone()) {
                return Err(ConfigError::Twice { place: self.sources.place(&origin), key: written, other });
            }
            let sources = self.sources.clone();
            let taken = |value| Taken { value, key: written.clone(), origin: origin.clone(), sources, secret: false };
            match meaning {
                Meaning::Key(index) => {
                    self.entries.insert((KEYS[index].section, KEYS[index].name), Entry { value, origin });
                }
                Meaning::Section(section) => match value {
                    Value::Null => {}
                    Value::Object(map) => self.add(file, section, &path, map, ignore)?,
                    other => return Err(taken(other).refuse("a mapping of keys to values")),
                },
                Meaning::Mode if name == "daemon" && value != Value::Bool(true) => {
                    return Err(taken(value).refuse("true"));
                }
                Meaning::Mode if name != "daemon" && value != "daemon" => {
                    return Err(taken(value).refuse("daemon"));
                }
                Meaning::Mode => {}
                Meaning::WithoutEffect | Meaning::Guest => ignore(meaning, written),
                Meaning::Unknown => {
                    let nearest = keys::nearest(section, &name);
                    return Err(ConfigError::UnknownKey {
                        place: self.sources.place(&origin),
                        key: path.join("."),
                        nearest,
                    });
                }
            }
        }
        Ok(())
    }

    /// Sets a key, over any earlier value.
    pub(super) fn set(&mut self, section: &'static str, name: &'static str, value: Value, place: Place) {
        self.entries.insert((section, name), Entry { value, origin: Origin::Elsewhere(place) });
    }

    /// Removes a key.
    pub(super) fn remove(&mut self, section: &str, name: &str) {
        self.entries.retain(|(s, n), _| (*s, *n) != (section, name));
    }

    /// Takes out the value of a key of the table.
    pub(super) fn take(&mut self, section: &'static str, name: &'static str) -> Option<Taken> {
        let key = KEYS.iter().find(|k| (k.section, k.name) == (section, name)).expect("readers name keys of the table");
        let entry = self.entries.remove(&(section, name)).filter(|entry| !entry.value.is_null())?;
        let written = match &entry.origin {
            Origin::File(_, path) => path.join("."),
            Origin::Elsewhere(_) if section.is_empty() => name.to_owned(),
            Origin::Elsewhere(_) => format!("{section}.{name}"),
        };
        Some(Taken {
            value: entry.value,
            key: written,
            origin: entry.origin,
            sources: self.sources.clone(),
            secret: key.secret,
        })
    }

    /// Adds a warning for a person.
    pub(super) fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    /// The warnings for a person. Every setting must have been taken, so that each has an effect.
    pub(super) fn into_warnings(self) -> Vec<String> {
        debug_assert!(self.entries.is_empty(), "nobody reads {:?}", self.entries.keys());
        self.warnings
    }
}

fn listed(mut names: Vec<String>) -> String {
    names.sort();
    names.dedup();
    names.join(", ")
}
