// SPDX-License-Identifier: Apache-2.0
//! Elements and attributes of an envelope, by their local names, and the units of its numbers.

use roxmltree::Node;

/// Bytes of an allocation unit: `byte * 2^30` (OVF 1.1 and later), or a word (0.9).
pub(super) fn unit_bytes(unit: &str) -> Option<u64> {
    let unit = unit.trim().to_ascii_lowercase();
    let Some((base, factor)) = unit.split_once('*') else {
        return Some(match unit.as_str() {
            "" | "byte" | "bytes" => 1,
            "kilobytes" | "kb" | "kib" | "kibibytes" => 1 << 10,
            "megabytes" | "mb" | "mib" | "mebibytes" => 1 << 20,
            "gigabytes" | "gb" | "gib" | "gibibytes" => 1 << 30,
            "terabytes" | "tb" | "tib" | "tebibytes" => 1 << 40,
            _ => return None,
        });
    };
    let (radix, exponent) = factor.trim().split_once('^').unwrap_or((factor, "1"));
    let radix: u64 = radix.trim().parse().ok()?;
    (base.trim() == "byte").then(|| radix.checked_pow(exponent.trim().parse().ok()?)).flatten()
}

/// Whether an element is what DSP0243 calls `name`, in any case. OVF 0.9 and those who still write it have a
/// `Section xsi:type="ovf:DiskSection_Type"` for a `DiskSection`, and a `Content` for a `VirtualSystem`.
pub(super) fn is(node: Node, name: &str) -> bool {
    let tag = node.tag_name().name();
    if tag.eq_ignore_ascii_case(name) {
        return true;
    }
    let typed = tag.eq_ignore_ascii_case("Section") || tag.eq_ignore_ascii_case("Content");
    typed
        && attribute(node, "type").is_some_and(|kind| {
            let kind = kind.trim().rsplit(':').next().unwrap_or_default();
            let (stem, ending) = kind.split_at(kind.floor_char_boundary(kind.len().saturating_sub("_Type".len())));
            kind.eq_ignore_ascii_case(name) || ending.eq_ignore_ascii_case("_Type") && stem.eq_ignore_ascii_case(name)
        })
}

pub(super) fn children<'a, 'i: 'a>(node: Node<'a, 'i>, name: &'a str) -> impl Iterator<Item = Node<'a, 'i>> + 'a {
    node.children().filter(move |n| is(*n, name))
}

/// The attribute of this local name, in any case.
pub(super) fn attribute<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    let exact = node.attributes().find(|a| a.name() == name);
    exact.or_else(|| node.attributes().find(|a| a.name().eq_ignore_ascii_case(name))).map(|a| a.value())
}

/// The trimmed text of the first child of this name; `None` where it is empty.
pub(super) fn child_text<'a>(node: Node<'a, '_>, name: &'a str) -> Option<&'a str> {
    children(node, name).next()?.text().map(str::trim).filter(|text| !text.is_empty())
}
