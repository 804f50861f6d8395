//! What the controller wrote itself: its caches show that a moment later, and a decision on what they show until then
//! would only be refused.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use kube::ResourceExt;

use crate::cluster::cache::version;

/// The newest version that was written of each object, until a cache shows it.
#[derive(Debug, Default)]
pub struct Writes {
    versions: Mutex<HashMap<String, u64>>,
}

impl Writes {
    /// Takes note of an object as a write left it.
    pub fn wrote(&self, object: &impl ResourceExt) {
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        versions.insert(name(object), version(object));
    }

    /// Whether this is an object as it was before the last write. The newer one arrives by itself.
    pub fn is_older(&self, object: &impl ResourceExt) -> bool {
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        let name = name(object);
        let is_older = versions.get(&name).is_some_and(|written| version(object) < *written);
        if !is_older {
            versions.remove(&name);
        }
        is_older
    }
}

fn name(object: &impl ResourceExt) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
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
