// SPDX-License-Identifier: Apache-2.0
//! The layers of the library import only downwards, and no two modules of a folder import each other in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, ItemUse, UseTree};

/// Every top-level module and those it may name besides itself.
const MAY_NAME: [(&str, &[&str]); 15] = [
    ("conversion", &[]),
    ("files", &["conversion"]),
    ("disk", &["conversion"]),
    ("guest", &["conversion", "disk"]),
    ("appliance", &["conversion", "disk", "guest"]),
    ("worker", &["appliance", "conversion", "disk", "files", "guest"]),
    ("stats", &["conversion"]),
    ("telemetry", &["conversion", "stats"]),
    ("control", &["conversion", "stats"]),
    ("notification", &["conversion", "stats"]),
    ("config", &["conversion", "notification"]),
    ("ledger", &["conversion", "files", "stats"]),
    ("executor", &["conversion", "files", "ledger", "stats"]),
    (
        "queue",
        &[
            "config",
            "control",
            "conversion",
            "disk",
            "executor",
            "files",
            "ledger",
            "notification",
            "stats",
            "telemetry",
        ],
    ),
    (
        "cluster",
        &[
            "config",
            "control",
            "conversion",
            "executor",
            "files",
            "ledger",
            "notification",
            "queue",
            "stats",
            "telemetry",
        ],
    ),
];

/// A path from the crate's root, one segment an element.
type Segments = Vec<String>;

/// The names that one module's source uses.
#[derive(Default)]
struct Module {
    /// By the names that a `use` brought in, their paths.
    names: BTreeMap<String, Segments>,
    /// Modules all of whose public names a `use` brought in.
    globs: Vec<Segments>,
    /// Every path that occurs, in `use` lines and elsewhere.
    named: BTreeSet<Segments>,
}

/// All modules of a source tree, without tests.
struct Tree {
    modules: BTreeMap<Segments, Module>,
}

impl Tree {
    fn read(source: &Path) -> Self {
        let files: BTreeMap<Segments, String> = rust_files(source)
            .into_iter()
            .filter(|file| !file.starts_with(source.join("bin")))
            .map(|file| {
                (module_of(file.strip_prefix(source).expect("below")), fs::read_to_string(&file).expect("text"))
            })
            .collect();
        Self::parse(&files)
    }

    fn parse(files: &BTreeMap<Segments, String>) -> Self {
        let parse = |(path, text): (&Segments, &String)| {
            (path.clone(), syn::parse_file(text).unwrap_or_else(|e| panic!("{}: {e}", path.join("::"))))
        };
        let parsed: BTreeMap<Segments, syn::File> = files.iter().map(parse).collect();
        let of_tests: BTreeSet<Segments> =
            parsed.iter().flat_map(|(path, file)| modules_for_tests(path, file)).collect();
        let known: BTreeSet<&Segments> = files.keys().collect();
        let mut modules = BTreeMap::new();
        for (path, file) in &parsed {
            if (1..=path.len()).any(|n| of_tests.contains(&path[..n])) {
                continue;
            }
            let mut reader = Reader { at: path.clone(), known: &known, module: Module::default() };
            reader.visit_file(file);
            modules.insert(path.clone(), reader.module);
        }
        Self { modules }
    }

    /// The module that defines the target of `path`; follows `pub use`.
    fn definition(&self, path: &Segments, steps: usize) -> Option<Segments> {
        let depth = (0..=path.len()).rev().find(|n| self.modules.contains_key(&path[..*n]))?;
        let (found, rest) = path.split_at(depth);
        let module = &self.modules[found];
        // Re-exports that lead in a circle are not checked here.
        let renamed = rest.first().filter(|_| steps > 0).and_then(|name| module.names.get(name));
        if let Some(target) = renamed {
            let further = target.iter().chain(&rest[1..]).cloned().collect();
            return self.definition(&further, steps - 1);
        }
        Some(found.to_vec())
    }

    /// Each module with those that it imports from.
    fn imports(&self) -> BTreeMap<&Segments, BTreeSet<Segments>> {
        self.modules
            .iter()
            .map(|(path, module)| {
                let globs = module.globs.iter().cloned();
                let found = module.named.iter().cloned().chain(globs).filter_map(|named| self.definition(&named, 8));
                (path, found.filter(|found| found != path && !found.is_empty()).collect())
            })
            .collect()
    }

    /// Circles between the modules of one folder, each as a sentence. What lies below a module counts as the module;
    /// a module and what lies below it may know each other.
    fn circles(&self) -> Vec<String> {
        let mut ties: BTreeMap<(Segments, String), BTreeMap<String, String>> = BTreeMap::new();
        for (from, imports) in self.imports() {
            for to in imports {
                let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
                if shared == from.len() || shared == to.len() {
                    continue;
                }
                let why = format!("{} imports {}", from.join("::"), to.join("::"));
                let folder = from[..shared].to_vec();
                ties.entry((folder, from[shared].clone())).or_default().insert(to[shared].clone(), why);
            }
        }
        let mut circles = Vec::new();
        let mut seen = BTreeSet::new();
        for (folder, start) in ties.keys() {
            let Some(way) = way_back(&ties, folder, start) else { continue };
            let members: BTreeSet<_> = way.iter().map(|(from, _)| (folder.clone(), from.clone())).collect();
            if seen.insert(members) {
                circles.push(way.into_iter().map(|(_, why)| why).collect::<Vec<_>>().join("; "));
            }
        }
        circles
    }
}

/// The shortest way from `start` back to it, as (module, why it leads to the next).
fn way_back(
    ties: &BTreeMap<(Segments, String), BTreeMap<String, String>>,
    folder: &Segments,
    start: &str,
) -> Option<Vec<(String, String)>> {
    let mut ways = std::collections::VecDeque::from([(start.to_owned(), Vec::new())]);
    let mut reached = BTreeSet::new();
    while let Some((at, way)) = ways.pop_front() {
        for (next, why) in ties.get(&(folder.clone(), at.clone())).into_iter().flatten() {
            let mut further: Vec<(String, String)> = way.clone();
            further.push((at.clone(), why.clone()));
            if next == start {
                return Some(further);
            }
            if reached.insert(next.clone()) {
                ways.push_back((next.clone(), further));
            }
        }
    }
    None
}

/// Collects what one file names.
struct Reader<'a> {
    at: Segments,
    known: &'a BTreeSet<&'a Segments>,
    module: Module,
}

impl Reader<'_> {
    /// The path from the root, if `path` leads into this crate.
    fn absolute(&self, path: &[String]) -> Option<Segments> {
        let mut base = self.at.clone();
        let mut rest = path;
        match path.first()?.as_str() {
            "crate" => {
                base.clear();
                rest = &rest[1..];
            }
            "self" => rest = &rest[1..],
            "super" => {}
            first => {
                base.push(first.to_owned());
                let is_child = self.known.contains(&base);
                base.pop();
                if !is_child {
                    return None;
                }
            }
        }
        while rest.first().is_some_and(|segment| segment == "super") {
            base.pop()?;
            rest = &rest[1..];
        }
        base.extend_from_slice(rest);
        Some(base)
    }

    fn take_use(&mut self, tree: &UseTree, before: &mut Segments) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.take_use(&path.tree, before);
                before.pop();
            }
            UseTree::Name(name) => self.take_name(&name.ident.to_string(), &name.ident.to_string(), before),
            UseTree::Rename(name) => self.take_name(&name.ident.to_string(), &name.rename.to_string(), before),
            UseTree::Glob(_) => self.module.globs.extend(self.absolute(before)),
            UseTree::Group(group) => group.items.iter().for_each(|item| self.take_use(item, before)),
        }
    }

    fn take_name(&mut self, name: &str, here: &str, before: &Segments) {
        let mut path = before.clone();
        let mut here = here;
        if name == "self" {
            here = before.last().map_or("self", String::as_str);
        } else {
            path.push(name.to_owned());
        }
        if let Some(absolute) = self.absolute(&path) {
            self.module.names.insert(here.to_owned(), absolute.clone());
            self.module.named.insert(absolute);
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if is_for_tests(&item.attrs) {
            return;
        }
        // A re-export is no import: the modules that use the name from here import it.
        let named = self.module.named.clone();
        self.take_use(&item.tree, &mut Vec::new());
        if !matches!(item.vis, syn::Visibility::Inherited) {
            self.module.named = named;
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Struct(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_for_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Segments = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if segments.len() > 1 {
            self.module.named.extend(self.absolute(&segments));
        }
        visit::visit_path(self, path);
    }
}

/// Modules that a file declares for tests alone.
fn modules_for_tests(path: &Segments, file: &syn::File) -> Vec<Segments> {
    let declared = file.items.iter().filter_map(|item| match item {
        Item::Mod(item) if is_for_tests(&item.attrs) => Some(item.ident.to_string()),
        _ => None,
    });
    declared.map(|name| path.iter().cloned().chain([name]).collect()).collect()
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|condition| condition.is_ident("test"))
    })
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("a folder of the package") {
        let path = entry.expect("a folder entry").path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

/// `queue/engine.rs` is `queue::engine`; `lib.rs` is the root.
fn module_of(file: &Path) -> Segments {
    let path = file.with_extension("");
    let segments: Segments = path.iter().map(|segment| segment.to_string_lossy().into_owned()).collect();
    if segments == ["lib"] { Vec::new() } else { segments }
}

fn library() -> Tree {
    Tree::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

#[test]
fn a_layer_names_only_those_below_it() {
    let mut wrong = Vec::new();
    for (module, imports) in library().imports() {
        let Some(layer) = module.first() else { continue };
        let (_, allowed) = MAY_NAME.iter().find(|(name, _)| name == layer).expect("another test looks for these");
        for named in imports.iter().filter(|named| named[0] != *layer && !allowed.contains(&named[0].as_str())) {
            wrong.push(format!("{} imports {}", module.join("::"), named.join("::")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_modules_of_a_folder_import_each_other_in_a_circle() {
    let circles = library().circles();
    assert!(circles.is_empty(), "{}", circles.join("\n"));
}

#[test]
fn a_plan_is_called_recorded_only_where_records_are_read() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut callers: Vec<_> = rust_files(&source)
        .into_iter()
        .filter(|file| !file.ends_with("tests.rs"))
        .filter(|file| {
            let text = fs::read_to_string(file).expect("a source file");
            text.split("#[cfg(test)]").next().expect("a first part").contains("Recorded::found(")
        })
        .map(|file| file.strip_prefix(&source).expect("below src").to_string_lossy().into_owned())
        .collect();
    callers.sort();
    assert_eq!(callers, ["ledger/ended.rs", "ledger/rows.rs", "queue/claim.rs"]);
}

#[test]
fn every_folder_of_the_library_is_a_layer() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in fs::read_dir(source).expect("src") {
        let name = entry.expect("a folder entry").file_name().into_string().expect("a UTF-8 name");
        let name = name.trim_end_matches(".rs");
        let known = MAY_NAME.iter().any(|(m, _)| *m == name) || ["bin", "lib"].contains(&name);
        assert!(known, "src/{name} is no layer of the architecture");
    }
}

#[test]
fn a_circle_is_seen_through_re_exports_and_folders() {
    let files = |sources: &[(&str, &str)]| {
        let files =
            sources.iter().map(|(path, text)| (path.split("::").map(str::to_owned).collect(), (*text).to_owned()));
        Tree::parse(&files.collect()).circles()
    };
    let sibling = ("a::one", "use super::two::Two; pub struct One;");
    for (sources, expected) in [
        (vec![sibling, ("a::two", "fn f() { crate::a::one::One; }")], 1),
        (vec![sibling, ("a::two", "pub struct Two; #[cfg(test)] mod tests { use crate::a::one::One; }")], 0),
        // A module only for tests.
        (vec![("a", "#[cfg(test)] mod two;"), sibling, ("a::two", "use super::one::One; pub struct Two;")], 0),
        // By way of the parent, which re-exports it.
        (vec![("a", "pub use one::One;"), sibling, ("a::two", "use super::One;")], 1),
        // Between two folders, by modules in them.
        (
            vec![("a::one::deep", "use crate::a::two::Two;"), ("a::one", ""), ("a::two", "use super::one::{self, X};")],
            1,
        ),
        // A module and the modules below it count as one.
        (vec![("a", "use one::One; pub struct A;"), ("a::one", "use super::A; pub struct One;")], 0),
    ] {
        assert_eq!(files(&sources).len(), expected, "{sources:?}");
    }
}
