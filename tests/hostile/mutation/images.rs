// SPDX-License-Identifier: Apache-2.0
//! The images that are changed.

use std::sync::OnceLock;

use super::mend::unclosed;
use crate::disks::good;
use crate::support::vmdk::{Sparse, built, descriptor};
use crate::trap::content;

/// A file that is dropped, with the files beside it.
pub(super) struct Dropped {
    pub(super) name: &'static str,
    pub(super) image: Vec<u8>,
    pub(super) siblings: Vec<(&'static str, Vec<u8>)>,
}

/// The images to change; made once.
pub(super) fn images() -> &'static [Dropped] {
    static IMAGES: OnceLock<Vec<Dropped>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let content = content(2 << 20);
        let alone = good(&content).into_iter().map(|(name, image)| Dropped { name, image, siblings: Vec::new() });
        alone.chain(described(&content)).chain(damaged(&content)).chain(super::sparse::tars(&content)).collect()
    })
}

/// Images that lack something and are taken, with a warning.
fn damaged(content: &[u8]) -> Vec<Dropped> {
    let alone = |name, image| Dropped { name, image, siblings: Vec::new() };
    let mut stale = built(&Sparse::monolithic_sparse(content.len() as u64), content);
    // The first redundant table, behind the header, the descriptor and its directory.
    stale[22 * 512..26 * 512].fill(0);
    let mut images = vec![alone("stale.vmdk", stale)];
    for (name, mut image) in good(content) {
        match name {
            "dynamic.vhd" => {
                image.truncate(image.len() - 512);
                images.push(alone("endless.vhd", image));
            }
            "dynamic.vhdx" => images.push(alone("unclosed.vhdx", unclosed(image))),
            "fixed.vhd" => {
                image.resize(image.len() + 4096, 0);
                images.push(alone("padded.vhd", image));
            }
            "version-2.qcow2" => {
                image.truncate(image.len() - 1000);
                images.push(alone("cut.qcow2", image));
            }
            _ => {}
        }
    }
    images
}

/// Texts that describe the files beside them.
fn described(content: &[u8]) -> [Dropped; 2] {
    let size = content.len() as u64;
    let disk = built(&Sparse::stream_optimized(size), content);
    let extents = "RW 2048 FLAT \"f1.vmdk\" 0\nRW 1024 ZERO\nRW 1024 FLAT \"f2.vmdk\" 8";
    let split = descriptor("twoGbMaxExtentFlat", size).replace("RW 4096 SPARSE \"generated-stream.vmdk\"", extents);
    let (first, second) = content.split_at(1 << 20);
    [
        Dropped {
            name: "one.ovf",
            image: crate::support::ova::ovf(&[("d.vmdk", size)]).into_bytes(),
            siblings: vec![("d.vmdk", disk)],
        },
        Dropped {
            name: "split.vmdk",
            image: split.into_bytes(),
            siblings: vec![("f1.vmdk", first.to_vec()), ("f2.vmdk", second.to_vec())],
        },
    ]
}
