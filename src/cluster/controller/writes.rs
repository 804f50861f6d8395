// SPDX-License-Identifier: Apache-2.0
//! What the controller itself wrote. Its caches show that a moment later; until then, a decision on what they show
//! would only be refused.

use kube::ResourceExt;

use super::admission::Key;
use super::recent::Recent;
use crate::cluster::cache::version;

/// What was written of each object, until a cache shows it.
#[derive(Debug, Default)]
pub(super) struct Writes {
    versions: Recent<u64>,
    /// UIDs of objects that were removed.
    removed: Recent<()>,
}

impl Writes {
    /// Remembers an object as a write returned it.
    pub(super) fn wrote(&self, object: &impl ResourceExt) {
        self.versions.remember(Key::of(object).to_string(), version(object));
    }

    /// Whether this object is older than our last write. The newer one arrives by itself.
    pub(super) fn is_older(&self, object: &impl ResourceExt) -> bool {
        let name = Key::of(object).to_string();
        let is_older = self.versions.get(&name).is_some_and(|written| version(object) < written);
        if !is_older {
            self.versions.forget(&name);
        }
        is_older
    }

    /// Remembers that an object was removed.
    pub(super) fn removed(&self, object: &impl ResourceExt) {
        self.removed.remember(object.uid().unwrap_or_default(), ());
    }

    /// Whether this object was removed a moment ago.
    pub(super) fn is_removed(&self, object: &impl ResourceExt) -> bool {
        self.removed.get(&object.uid().unwrap_or_default()).is_some()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    #[test]
    fn an_object_is_older_until_it_is_seen_as_it_was_written() {
        let at = |version: u64| {
            let mut object = ConfigMap::default();
            object.metadata.resource_version = Some(version.to_string());
            object
        };
        let writes = Writes::default();
        assert!(!writes.is_older(&at(8)));
        writes.wrote(&at(9));
        writes.wrote(&at(11));
        assert_eq!([8, 9, 10, 11, 10].map(|version| writes.is_older(&at(version))), [true, true, true, false, false]);
    }
}
