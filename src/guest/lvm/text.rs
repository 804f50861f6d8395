// SPDX-License-Identifier: Apache-2.0
//! The text of LVM's metadata: `name = value`, `name { … }`, lists, and comments.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::Chars;

use crate::guest::budget::Budget;
use crate::guest::error::{Error, Result};

/// A group of values by name.
pub(super) type Section = BTreeMap<String, Value>;

/// Sections in sections; a group has five.
const MAX_DEPTH: usize = 8;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value {
    Number(u64),
    Text(String),
    List(Vec<Value>),
    Section(Section),
}

impl Value {
    /// Whether it is this text.
    pub(super) fn is(&self, text: &str) -> bool {
        matches!(self, Self::Text(own) if own == text)
    }
}

/// Parses a whole text.
pub(super) fn parse(text: &str, budget: &Budget) -> Result<Section> {
    let mut parser = Parser { rest: text.chars().peekable(), budget };
    parser.section(0)
}

struct Parser<'a> {
    rest: Peekable<Chars<'a>>,
    budget: &'a Budget,
}

impl Parser<'_> {
    /// Everything up to a closing brace or the end.
    fn section(&mut self, depth: usize) -> Result<Section> {
        if depth > MAX_DEPTH {
            return Err(Error::corrupt("has LVM metadata that is nested too deeply"));
        }
        let mut section = Section::new();
        loop {
            self.budget.step()?;
            self.space();
            match self.rest.peek() {
                None | Some('\0') => return Ok(section),
                Some('}') => {
                    self.rest.next();
                    return Ok(section);
                }
                Some(_) => {}
            }
            let name = self.word();
            if name.is_empty() {
                return Err(Error::corrupt("has LVM metadata that cannot be read"));
            }
            self.space();
            let value = match self.rest.next() {
                Some('{') => Value::Section(self.section(depth + 1)?),
                Some('=') => self.value(depth)?,
                _ => return Err(Error::corrupt("has LVM metadata that cannot be read")),
            };
            section.insert(name, value);
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value> {
        self.budget.step()?;
        if depth > MAX_DEPTH {
            return Err(Error::corrupt("has LVM metadata that is nested too deeply"));
        }
        self.space();
        match self.rest.peek() {
            Some('"') => {
                self.rest.next();
                let mut text = String::new();
                while let Some(c) = self.rest.next() {
                    match c {
                        '"' => return Ok(Value::Text(text)),
                        '\\' => text.extend(self.rest.next()),
                        c => text.push(c),
                    }
                }
                Err(Error::corrupt("has LVM metadata that ends within a text"))
            }
            Some('[') => {
                self.rest.next();
                let mut list = Vec::new();
                loop {
                    self.space();
                    match self.rest.peek() {
                        Some(']') => {
                            self.rest.next();
                            return Ok(Value::List(list));
                        }
                        Some(',') => {
                            self.rest.next();
                        }
                        None => return Err(Error::corrupt("has LVM metadata that ends within a list")),
                        Some(_) => list.push(self.value(depth + 1)?),
                    }
                }
            }
            _ => {
                let word = self.word();
                if word.is_empty() {
                    return Err(Error::corrupt("has LVM metadata that cannot be read"));
                }
                Ok(word.parse().map_or(Value::Text(word), Value::Number))
            }
        }
    }

    fn word(&mut self) -> String {
        let mut word = String::new();
        while let Some(c) = self.rest.next_if(|c| c.is_ascii_alphanumeric() || "_-.+".contains(*c)) {
            word.push(c);
        }
        word
    }

    /// Passes over white space and comments.
    fn space(&mut self) {
        while let Some(c) = self.rest.next_if(|c| c.is_whitespace() || *c == '#') {
            if c == '#' {
                while self.rest.next_if(|c| *c != '\n').is_some() {}
            }
        }
    }
}
