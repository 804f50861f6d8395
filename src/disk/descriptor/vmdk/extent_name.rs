// SPDX-License-Identifier: Apache-2.0
//! What the file of an extent may be called: bytes in the descriptor's encoding, or as another program copied them.

use super::{ExtentKind, ExtentLine, plain_name, shown};
use crate::conversion::{Reason, Remedy};
use crate::disk::{Error, text};

impl ExtentLine {
    /// The base names that its file may have, the likelier first; `None` for `ZERO`. There are two where the bytes are
    /// UTF-8, as most file systems have them, and the descriptor names another encoding.
    ///
    /// # Errors
    /// `UnsafeReference` for anything but a plain name, `MissingMember` where nobody knows the encoding.
    pub(crate) fn file_names(&self, file: &str) -> Result<Option<(String, Option<String>)>, Error> {
        if self.kind == ExtentKind::Zero {
            return Ok(None);
        }
        let stated = self.encoding.and_then(|encoding| text::decode_as(encoding, &self.name).ok());
        let utf8 = std::str::from_utf8(&self.name).ok();
        match (stated, utf8) {
            (Some(stated), Some(utf8)) if stated != utf8 => {
                let (stated, utf8) = (plain_name(file, &stated), plain_name(file, utf8));
                match (stated, utf8) {
                    (Ok(stated), utf8) => Ok(Some((stated, utf8.ok()))),
                    (Err(_), utf8) => utf8.map(|name| Some((name, None))),
                }
            }
            (Some(stated), _) => plain_name(file, &stated).map(|name| Some((name, None))),
            (None, Some(utf8)) => plain_name(file, utf8).map(|name| Some((name, None))),
            (None, None) => {
                // A path in an unknown encoding is refused for being one.
                let seen = plain_name(file, &String::from_utf8_lossy(&self.name))?;
                let message = format!("names the extent {}, whose encoding nobody tells", shown(&seen));
                Err(Error::refuse(Reason::MissingMember, file, message).with_remedy(Remedy::NameEncoding))
            }
        }
    }
}
