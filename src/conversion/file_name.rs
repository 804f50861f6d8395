// SPDX-License-Identifier: Apache-2.0
//! The parts of a file's name.

/// The name without its extension: all before the last dot.
#[must_use]
pub(crate) fn stem(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// The extension without its dot: all after the last one, empty where there is none.
#[must_use]
pub(crate) fn extension(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(_, extension)| extension)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_dot_parts_stem_and_extension() {
        for (name, parts) in
            [("vm.ova", ("vm", "ova")), ("a.b.vmdk", ("a.b", "vmdk")), ("vm", ("vm", "")), ("vm.", ("vm", ""))]
        {
            assert_eq!((stem(name), extension(name)), parts, "{name}");
        }
    }
}
