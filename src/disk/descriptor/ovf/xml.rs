// SPDX-License-Identifier: Apache-2.0
//! Elements and attributes of an envelope, by their local names, and the units of its numbers.

use roxmltree::Node;

/// Bytes of an allocation unit: `byte * 2^30` (OVF 1.1 and later), or a word (0.9).
pub(super) fn unit_bytes(unit: &str) -> Option<u64> {
    let unit = unit.trim().to_ascii_lowercase();
    let Some((base, factor)) = unit.split_once('*') else {
        return Some(match unit.as_str() {
            "" | "byte" | "bytes" => 1,
            "kilobytes" | "kb" => 1 << 10,
            "megabytes" | "mb" => 1 << 20,
            "gigabytes" | "gb" => 1 << 30,
            "terabytes" | "tb" => 1 << 40,
            _ => return None,
        });
    };
    let (radix, exponent) = factor.trim().split_once('^').unwrap_or((factor, "1"));
    let radix: u64 = radix.trim().parse().ok()?;
    (base.trim() == "byte").then(|| radix.checked_pow(exponent.trim().parse().ok()?)).flatten()
}

pub(super) fn children<'a, 'i: 'a>(node: Node<'a, 'i>, name: &'a str) -> impl Iterator<Item = Node<'a, 'i>> + 'a {
    node.children().filter(move |n| n.tag_name().name() == name)
}

pub(super) fn attribute<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    node.attributes().find(|a| a.name() == name).map(|a| a.value())
}
