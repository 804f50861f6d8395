// SPDX-License-Identifier: Apache-2.0
//! `vm`: the `VirtualMachine` of a conversion, to be kept in Git or applied by hand.

use hyper2kvm::cluster::api::ConversionJobStatus;
use hyper2kvm::cluster::machine::{self, Manifest};
use hyper2kvm::conversion::emit;
use hyper2kvm::conversion::machine::one_line;
use serde_json::json;

use super::access::Access;
use super::{Printer, Refusal};

/// Longest line of a doubt.
const MAX_LINE: usize = 1000;

/// Prints it, with what is doubtful about it as comments.
pub(super) async fn print(access: &Access, name: &str, printer: Printer) -> Result<(), Refusal> {
    let conversion = access.conversions().get(name).await.map_err(|error| access.about_conversion(name, error))?;
    let queue = conversion.spec.queue_ref.name.as_str();
    let queue = access.queues().get(queue).await.map_err(|error| access.about_queue(queue, error))?;
    let settings = machine::settings(&conversion, &queue);
    let manifests =
        machine::manifests(&conversion, &settings).map_err(|why| format!("{name} has no machine: {why}"))?;
    let is_complete = conversion.status.as_ref().is_some_and(ConversionJobStatus::is_complete);
    let object = match manifests.as_slice() {
        [only] => only.object.clone(),
        several => {
            let items: Vec<_> = several.iter().map(|manifest| &manifest.object).collect();
            json!({"apiVersion": "v1", "kind": "List", "items": items})
        }
    };
    printer.print(&object, || {
        let documents: Vec<String> = manifests.iter().map(|manifest| text(manifest, is_complete)).collect();
        documents.join("---\n")
    })
}

fn text(manifest: &Manifest, is_complete: bool) -> String {
    let wait = "Its claims are not complete yet: a machine that is made now starts from what is not there".to_owned();
    let doubts = manifest.doubts.iter().map(|doubt| format!("Doubt: {doubt}"));
    let lines = (!is_complete).then_some(wait).into_iter().chain(doubts);
    let comments: Vec<String> = lines.map(|line| format!("# {}\n", one_line(&line, MAX_LINE))).collect();
    let comments = comments.concat();
    comments + &emit::yaml_document(&manifest.object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_says_what_is_doubtful_about_it() {
        let object = json!({"kind": "VirtualMachine", "metadata": {"name": "web"}});
        let manifest = Manifest { object, doubts: vec!["odd\nline".to_owned()] };
        let expected = "# Doubt: odd line\nkind: VirtualMachine\nmetadata:\n  name: web\n";
        assert_eq!(text(&manifest, true), expected);
        assert!(text(&manifest, false).starts_with("# Its claims are not complete yet"));
    }
}
