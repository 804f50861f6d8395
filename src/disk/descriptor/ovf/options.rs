// SPDX-License-Identifier: Apache-2.0
//! Deployment options: which of the machines that an envelope describes is meant, and what belongs to it alone.
//!
//! Format: DSP0243, "Deployment options" and "Product section". An item of the hardware names the options that it
//! belongs to; a property may have a value for each.

use roxmltree::Node;

use super::parts::OvfOption;
use super::xml::{attribute, child_text, children, is};
use crate::conversion::{Reason, Remedy};
use crate::disk::Error;
use crate::disk::descriptor::{MAX_MEMBERS, shown};

/// Resource type of a disk (DSP8042).
const DISK: &str = "17";

/// Longest text about an option, in characters.
const MAX_TEXT: usize = 256;

/// The options, of which one is chosen: the one called `wanted`, else the default one, else the first.
///
/// # Errors
/// `UnsupportedFormat` where there is none called `wanted`.
pub(super) fn read(file: &str, envelope: Node, wanted: Option<&str>) -> Result<Vec<OvfOption>, Error> {
    let sections = children(envelope, "DeploymentOptionSection");
    let configurations: Vec<_> =
        sections.flat_map(|s| children(s, "Configuration")).filter(|c| attribute(*c, "id").is_some()).collect();
    let id = |c: &Node| attribute(*c, "id").unwrap_or_default().to_owned();
    let is_default =
        |c: &&Node| attribute(**c, "default").is_some_and(|d| d.trim().eq_ignore_ascii_case("true") || d.trim() == "1");
    let chosen = match wanted {
        Some(wanted) => configurations.iter().find(|c| id(c) == wanted),
        None => configurations.iter().find(is_default).or_else(|| configurations.first()),
    };
    if let (Some(wanted), None) = (wanted, chosen) {
        let offered: Vec<_> = configurations.iter().take(MAX_MEMBERS).map(|c| shown(&id(c))).collect();
        let offered = if offered.is_empty() { "none".to_owned() } else { offered.join(", ") };
        let message = format!("has no deployment option {}; its options: {offered}", shown(wanted));
        return Err(Error::refuse(Reason::UnsupportedFormat, file, message).with_remedy(Remedy::ChooseOption));
    }
    let text = |c: Node, name: &str| child_text(c, name).map(visible);
    let option = |c: &Node| OvfOption {
        id: id(c),
        label: text(*c, "Label"),
        description: text(*c, "Description"),
        chosen: chosen == Some(c),
    };
    Ok(configurations.iter().take(MAX_MEMBERS).map(option).collect())
}

/// The disks that only other options than the chosen one have: their ids, or `/file/` and their files' ids.
pub(super) struct Others<'a> {
    /// Disks of the chosen option, and of all.
    ours: Vec<&'a str>,
    theirs: Vec<&'a str>,
}

impl<'a> Others<'a> {
    pub(super) fn find(envelope: Node<'a, 'a>, options: &[OvfOption]) -> Self {
        let mut found = Self { ours: Vec::new(), theirs: Vec::new() };
        let Some(chosen) = options.iter().find(|option| option.chosen) else { return found };
        for item in envelope.descendants().filter(|n| is(*n, "Item") || is(*n, "StorageItem")) {
            if child_text(item, "ResourceType") != Some(DISK) {
                continue;
            }
            let is_ours = attribute(item, "configuration").is_none_or(|list| lists(list, &chosen.id));
            let list = if is_ours { &mut found.ours } else { &mut found.theirs };
            list.extend(child_text(item, "HostResource").map(resource));
        }
        found
    }

    /// Whether the chosen machine lacks the disk with this id, whose file has that one.
    pub(super) fn have(&self, disk: &str, file: Option<&str>) -> bool {
        let names = |list: &[&str]| {
            list.iter().any(|resource| match resource.strip_prefix("file/") {
                Some(id) => file == Some(id),
                None => resource.strip_prefix("disk/") == Some(disk),
            })
        };
        names(&self.theirs) && !names(&self.ours)
    }
}

/// `disk/ID` or `file/ID`, of `ovf:/disk/ID` and however else it is written.
fn resource(text: &str) -> &str {
    text.strip_prefix("ovf:").unwrap_or(text).trim_start_matches('/')
}

fn lists(list: &str, option: &str) -> bool {
    list.split_whitespace().any(|other| other == option)
}

/// The value that the property `name` has for the chosen option if nobody sets it; `None` where several differ.
pub(super) fn property<'a>(envelope: Node<'a, 'a>, name: &str, options: &[OvfOption]) -> Option<&'a str> {
    let chosen = options.iter().find(|option| option.chosen);
    let of_option = |property: Node<'a, 'a>| {
        let values = children(property, "Value").find(|value| {
            chosen.is_some_and(|c| attribute(*value, "configuration").is_some_and(|list| lists(list, &c.id)))
        });
        values.and_then(|value| attribute(value, "value")).or_else(|| attribute(property, "value"))
    };
    let mut found = None;
    for section in envelope.descendants().filter(|n| is(*n, "ProductSection")) {
        let part = |name| attribute(section, name).filter(|text| !text.is_empty());
        let (class, instance) = (part("class"), part("instance"));
        for property in children(section, "Property") {
            let Some(key) = attribute(property, "key") else { continue };
            let whole = [class, Some(key), instance].into_iter().flatten().collect::<Vec<_>>().join(".");
            let without_instance = class.map(|class| format!("{class}.{key}"));
            if name != key && name != whole && Some(name) != without_instance.as_deref() {
                continue;
            }
            let value = of_option(property)?;
            if found.is_some_and(|other| other != value) {
                return None;
            }
            found = Some(value);
        }
    }
    found
}

/// A text of the envelope on one line, without control characters.
fn visible(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ").chars().take(MAX_TEXT).collect()
}
