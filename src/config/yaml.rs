// SPDX-License-Identifier: Apache-2.0
//! The one place that reads and writes YAML.
//!
//! Reading goes through `serde_yaml` into JSON values, so that both notations mean the same. Writing goes through
//! `serde-saphyr`: `serde_yaml` leaves `no`, `on` and dates unquoted, which readers of YAML 1.1 (kubectl among them)
//! then take for something else.

use std::fmt;

use serde::Serialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

/// A text that is no YAML, or a value that can't be written as YAML.
#[derive(Debug, thiserror::Error)]
pub enum YamlError {
    #[error(transparent)]
    Syntax(#[from] serde_yaml::Error),
    #[error(transparent)]
    Write(#[from] serde_saphyr::ser::Error),
}

/// Reads one document (JSON is YAML too); an empty text is null.
pub(crate) fn read_value(text: &str) -> Result<Value, YamlError> {
    // JSON has escapes that YAML 1.1 hasn't (surrogate pairs).
    if text.trim_start().starts_with('{')
        && let Ok(value) = serde_json::from_str(text)
    {
        return Ok(value);
    }
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Value::Null);
    }
    Ok(serde_yaml::from_str(text)?)
}

/// Writes one document, without a `---` before it.
pub(crate) fn write(value: &impl Serialize) -> Result<String, YamlError> {
    Ok(serde_saphyr::to_string(value)?)
}

/// The line (from 1) on which the key at `path` stands; `None` where it can't be found.
#[must_use]
pub(crate) fn line_of(text: &str, path: &[&str]) -> Option<usize> {
    // The parser gives places only in errors, so one is raised at the key.
    let error = Locate(path).deserialize(serde_yaml::Deserializer::from_str(text)).err()?;
    error.to_string().contains(FOUND).then(|| error.location().map(|at| at.line())).flatten()
}

/// A message that no parser writes.
const FOUND: &str = "\u{1}the key is here\u{1}";

/// Walks down `path` and fails at its last key.
struct Locate<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for Locate<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Locate<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((wanted, rest)) = self.0.split_first() else { return Ok(()) };
        while let Some(found) = map.next_key_seed(LocateKey { wanted, is_last: rest.is_empty() })? {
            if found {
                map.next_value_seed(Locate(rest))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// Compares a key; fails there when it is the wanted one and the last.
struct LocateKey<'a> {
    wanted: &'a str,
    is_last: bool,
}

impl<'de> DeserializeSeed<'de> for LocateKey<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for LocateKey<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<bool, E> {
        match key == self.wanted {
            true if self.is_last => Err(E::custom(FOUND)),
            same => Ok(same),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_notations_mean_the_same() {
        let yaml = "retry_policy:\n  enabled: yes\n  delay: 300\nto: [a, b]\n";
        let value = json!({"retry_policy": {"enabled": "yes", "delay": 300}, "to": ["a", "b"]});
        assert_eq!(read_value(yaml).unwrap(), value);
        assert_eq!(read_value(&value.to_string()).unwrap(), value);
        assert_eq!(read_value(r#"{"a":"\ud83d\ude00"}"#).unwrap(), json!({"a": "😀"}));
    }

    #[test]
    fn nothing_is_null() {
        for text in ["", "\n\n", "# only a comment\n"] {
            assert_eq!(read_value(text).unwrap(), Value::Null);
        }
    }

    #[test]
    fn what_is_written_is_read_back_by_readers_of_either_version() {
        let value = json!({"a": "no", "b": "on", "c": "2026-01-17", "d": "1e3", "e": ["y", "~", ""], "f": {}, "g": 1});
        let text = write(&value).unwrap();
        assert_eq!(read_value(&text).unwrap(), value);
        for word in ["no", "on", "2026-01-17", "1e3", "y", "~"] {
            assert!(text.contains(&format!("\"{word}\"")) || text.contains(&format!("'{word}'")), "{word}: {text}");
        }
    }

    #[test]
    fn keys_are_found_on_their_lines() {
        let text = "# first\na: 1\n\nb:\n  - c: 1\n  - d\nnotifications:\n  a: 3\n  'quoted': 4\n";
        for (path, line) in [
            (["a"].as_slice(), Some(2)),
            (&["b"], Some(4)),
            (&["notifications", "a"], Some(8)),
            (&["notifications", "quoted"], Some(9)),
            (&["missing"], None),
            (&["a", "b"], None),
        ] {
            assert_eq!(line_of(text, path), line, "{path:?}");
        }
        assert_eq!(line_of("{\n\t\"a\": 1,\n\t\"b\": {\"c\": 2}\n}", &["b", "c"]), Some(3));
    }

    #[test]
    fn an_error_says_where() {
        let error = read_value("a: 1\nb: [\n").unwrap_err();
        assert!(error.to_string().contains("line 3"), "{error}");
    }
}
