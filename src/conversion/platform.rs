// SPDX-License-Identifier: Apache-2.0
//! The platforms that files are written for, and sets of them.

use std::collections::BTreeSet;
use std::fmt;

use schemars::JsonSchema;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(super) const DOMAIN: &str = "domain.xml";

/// A platform that runs virtual machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// domain.xml, for `virsh define`.
    Libvirt,
    /// virtualmachine.yaml, for `kubectl apply`: `KubeVirt`, `OpenShift` Virtualization, Harvester.
    Kubevirt,
    /// proxmox.sh, to be run on a Proxmox VE host.
    Proxmox,
    /// glance.json and openstack.sh.
    Openstack,
}

impl Platform {
    /// Every platform.
    pub const ALL: [Self; 4] = [Self::Libvirt, Self::Kubevirt, Self::Proxmox, Self::Openstack];

    /// The word in configuration and specification.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Libvirt => "libvirt",
            Self::Kubevirt => "kubevirt",
            Self::Proxmox => "proxmox",
            Self::Openstack => "openstack",
        }
    }

    /// The platform of a word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|platform| platform.as_str() == word)
    }

    /// Names of its files in a directory of their own.
    pub(super) const fn files(self) -> &'static [&'static str] {
        match self {
            Self::Libvirt => &[DOMAIN],
            Self::Kubevirt => &["virtualmachine.yaml"],
            Self::Proxmox => &["proxmox.sh"],
            Self::Openstack => &["glance.json", "openstack.sh"],
        }
    }
}

/// The platforms that files are wanted for.
///
/// It is written as a list. What was written before there were several is read, too: true for libvirt alone, false for
/// none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Emit(BTreeSet<Platform>);

impl Emit {
    /// Libvirt alone, or none.
    #[must_use]
    pub fn domain_xml(is_wanted: bool) -> Self {
        Self(is_wanted.then_some(Platform::Libvirt).into_iter().collect())
    }

    /// The platforms, each once, in their order.
    pub fn platforms(&self) -> impl Iterator<Item = Platform> + '_ {
        self.0.iter().copied()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    #[must_use]
    pub fn contains(&self, platform: Platform) -> bool {
        self.0.contains(&platform)
    }

    /// The set with libvirt added or removed, where a flag says so.
    #[must_use]
    pub fn with_domain_xml(mut self, flag: Option<bool>) -> Self {
        match flag {
            Some(true) => drop(self.0.insert(Platform::Libvirt)),
            Some(false) => drop(self.0.remove(&Platform::Libvirt)),
            None => {}
        }
        self
    }

    /// How a worker is told, which writes none of these files: as its first contract version knows.
    pub(crate) fn as_flag<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bool(self.contains(Platform::Libvirt))
    }
}

impl FromIterator<Platform> for Emit {
    fn from_iter<I: IntoIterator<Item = Platform>>(platforms: I) -> Self {
        Self(platforms.into_iter().collect())
    }
}

impl Serialize for Emit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(&self.0)
    }
}

impl<'de> Deserialize<'de> for Emit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FlagOrList;

        impl<'de> Visitor<'de> for FlagOrList {
            type Value = Emit;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of platforms")
            }

            fn visit_bool<E: de::Error>(self, is_wanted: bool) -> Result<Emit, E> {
                Ok(Emit::domain_xml(is_wanted))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Emit, A::Error> {
                let mut platforms = BTreeSet::new();
                while let Some(platform) = list.next_element()? {
                    platforms.insert(platform);
                }
                Ok(Emit(platforms))
            }
        }

        deserializer.deserialize_any(FlagOrList)
    }
}
