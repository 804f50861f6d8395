// SPDX-License-Identifier: Apache-2.0
//! The guest's files as the guest sees them: its root with what is mounted on it. Links lead nowhere outside.

use std::collections::VecDeque;
use std::rc::Rc;

use super::budget::Budget;
use super::error::{Error, Result, existing};
use super::fields::clean;
use super::files::{self, File, Kind, Node, Shared, Stat};

/// Symbolic links that one path may lead over, as Linux allows.
const MAX_LINKS: usize = 40;
/// Components that one path may have in all.
const MAX_COMPONENTS: usize = 512;
/// Longest text that is read whole.
const MAX_TEXT_FILE: usize = 4 << 20;

/// A file system mounted on a directory.
#[derive(Clone)]
struct Mounted {
    /// Without a slash at its end; the root is empty.
    path: Vec<u8>,
    files: Shared,
    root: Node,
}

/// The files of a guest.
#[derive(Clone)]
pub(super) struct Tree {
    mounted: Vec<Mounted>,
    budget: Rc<Budget>,
}

/// A file that was found.
pub(super) struct Found {
    files: Shared,
    node: Node,
    pub(super) stat: Stat,
}

impl Found {
    /// Opens it for reading from its start.
    pub(super) fn open(&self) -> File {
        File { files: Rc::clone(&self.files), node: self.node, at: 0 }
    }

    /// Reads at most `target.len()` bytes from `offset`.
    pub(super) fn read(&self, offset: u64, target: &mut [u8]) -> Result<usize> {
        self.files.read(self.node, offset, target)
    }
}

impl Tree {
    pub(super) fn new(files: Shared, root: Node, budget: &Rc<Budget>) -> Self {
        Self { mounted: vec![Mounted { path: Vec::new(), files, root }], budget: Rc::clone(budget) }
    }

    /// Mounts the directory `root` of `files` on `path`.
    pub(super) fn mount(&mut self, path: &str, files: Shared, root: Node) {
        let path = path.trim_end_matches('/').as_bytes().to_vec();
        self.mounted.push(Mounted { path, files, root });
    }

    pub(super) fn budget(&self) -> &Rc<Budget> {
        &self.budget
    }

    /// What `path` leads to, over links.
    pub(super) fn find(&self, path: &str) -> Result<Found> {
        let mut ahead: VecDeque<Vec<u8>> = components(path.as_bytes()).collect();
        let mut behind = vec![(Vec::new(), self.mounted[0].files.clone(), self.mounted[0].root)];
        let (mut links, mut steps) = (0, 0);
        while let Some(name) = ahead.pop_front() {
            self.budget.step()?;
            steps += 1;
            if steps > MAX_COMPONENTS {
                return Err(Error::corrupt("a path has too many components"));
            }
            if name == b".." {
                if behind.len() > 1 {
                    behind.pop();
                }
                continue;
            }
            let (above, files, directory) = behind.last().expect("the root stays");
            let path = [above, &b"/"[..], &name].concat();
            if let Some(mounted) = self.mounted.iter().rev().find(|mounted| mounted.path == path) {
                behind.push((path, mounted.files.clone(), mounted.root));
                continue;
            }
            let node = files.child(*directory, &name)?;
            if files.stat(node)?.kind != Kind::Link {
                let files = files.clone();
                behind.push((path, files, node));
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(Error::corrupt("too many symbolic links"));
            }
            let target = files.link(node)?;
            if target.first() == Some(&b'/') {
                behind.truncate(1);
            }
            for name in components(&target).collect::<Vec<_>>().into_iter().rev() {
                ahead.push_front(name);
            }
        }
        let (_, files, node) = behind.pop().expect("the root stays");
        let stat = files.stat(node)?;
        Ok(Found { files, node, stat })
    }

    pub(super) fn exists(&self, path: &str) -> Result<bool> {
        existing(self.find(path)).map(|found| found.is_some())
    }

    /// The bytes of the file at `path`, at most `most`.
    pub(super) fn bytes(&self, path: &str, most: usize) -> Result<Vec<u8>> {
        let found = self.find(path)?;
        files::contents(&*found.files, found.node, most)
    }

    /// The text of the file at `path`; what is no UTF-8 in it is replaced.
    pub(super) fn text(&self, path: &str) -> Result<String> {
        let bytes = self.bytes(path, MAX_TEXT_FILE)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The names in a directory, sorted; those that are no UTF-8 are left out. Empty where there is none.
    pub(super) fn names(&self, path: &str) -> Result<Vec<String>> {
        let Some(found) = existing(self.find(path))? else { return Ok(Vec::new()) };
        if found.stat.kind != Kind::Directory {
            return Ok(Vec::new());
        }
        let entries = found.files.list(found.node)?;
        let mut names: Vec<_> = entries.into_iter().filter_map(|entry| String::from_utf8(entry.name).ok()).collect();
        names.retain(|name| clean(name) == *name);
        names.sort();
        Ok(names)
    }

    /// Paths of the files in a directory whose names end with `end`.
    pub(super) fn ending(&self, directory: &str, end: &str) -> Result<Vec<String>> {
        let names = self.names(directory)?;
        Ok(names.into_iter().filter(|name| name.ends_with(end)).map(|name| format!("{directory}/{name}")).collect())
    }
}

fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").map(<[u8]>::to_vec)
}
