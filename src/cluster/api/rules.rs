// SPDX-License-Identifier: Apache-2.0
//! Rules in CEL that several fields share.

/// Rule of a path below a volume's root, in CEL: no slash at either end, none doubled, no control characters.
pub(super) const RELATIVE_PATH: &str =
    r"self == '' || self.matches('^[^/\\x00-\\x1f\\x7f]+(/[^/\\x00-\\x1f\\x7f]+)*$')";
/// The rule that goes with it: the path leads nowhere else.
pub(super) const NO_DOTS: &str = "!self.split('/').exists(part, part == '..' || part == '.')";
