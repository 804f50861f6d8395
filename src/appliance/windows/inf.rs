// SPDX-License-Identifier: Apache-2.0
//! What a driver's INF says, as far as it matters: which of virtio-blk's devices it is for.

/// Virtio-blk as a legacy or transitional device, and as a modern one, with the revisions that QEMU gives them.
const DEVICES: [(&str, &str); 2] =
    [("VEN_1AF4&DEV_1001", "VEN_1AF4&DEV_1001&REV_00"), ("VEN_1AF4&DEV_1042", "VEN_1AF4&DEV_1042&REV_01")];

/// The devices that the INF names, as Windows calls them.
pub(super) fn devices(content: &[u8]) -> Vec<&'static str> {
    let text = text(content).to_ascii_uppercase();
    // A comment names nothing.
    let lines = text.lines().map(|line| line.split(';').next().unwrap_or_default());
    let named: Vec<&str> = lines.filter(|line| line.contains("PCI\\")).collect();
    let is_named = |name: &str| named.iter().any(|line| line.contains(name));
    DEVICES.iter().filter(|(name, _)| is_named(name)).map(|(_, device)| *device).collect()
}

/// An INF is in UTF-16 with a mark, or in the letters of some code page, of which only ASCII matters.
fn text(content: &[u8]) -> String {
    match content {
        [0xFF, 0xFE, rest @ ..] => {
            let units: Vec<u16> = rest.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair)).collect();
            String::from_utf16_lossy(&units)
        }
        bytes => String::from_utf8_lossy(bytes).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_devices_are_those_of_its_lines_in_either_encoding() {
        let inf = "[Models.NTamd64]\r\n%a% = x, PCI\\ven_1af4&dev_1042&SUBSYS_11001AF4&REV_01\r\n; PCI\\VEN_1AF4&DEV_1001\r\n";
        let wide: Vec<u8> = [0xFEFF].into_iter().chain(inf.encode_utf16()).flat_map(u16::to_le_bytes).collect();
        for content in [inf.as_bytes(), &wide] {
            assert_eq!(devices(content), ["VEN_1AF4&DEV_1042&REV_01"]);
        }
        let both = "x = PCI\\VEN_1AF4&DEV_1001&REV_00\nPCI\\VEN_1AF4&DEV_1042";
        assert_eq!(devices(both.as_bytes()).len(), 2);
        assert!(devices(b"PCI\\VEN_1AF4&DEV_1000").is_empty() && devices(&[0xFF, 0xFE, 0]).is_empty());
    }
}
