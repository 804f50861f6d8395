// SPDX-License-Identifier: Apache-2.0
//! Secrets as the kubelet mounts them, and what is reported of missing or malformed ones.

use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::*;

fn settings(value: Value) -> NotificationSettings {
    serde_json::from_value(value).unwrap()
}

fn both() -> NotificationSettings {
    settings(json!({
        "webhook": {"type": "slack", "urlSecretRef": {"name": "hooks", "key": "url"}, "headersSecretRef": {"name": "headers"}},
        "email": {"host": "smtp.example.com", "from": "a@example.com", "to": ["b@example.com"],
                  "credentialsSecretRef": {"name": "smtp"}},
    }))
}

/// Mounts these files; a Secret that is missing is an empty directory.
fn mounted(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for directory in ["webhook", "webhook-headers", "email"] {
        fs::create_dir(root.path().join(directory)).unwrap();
    }
    for (file, text) in files {
        fs::write(root.path().join(file), text).unwrap();
    }
    root
}

#[test]
fn what_is_wrong_names_the_field_the_secret_the_key_and_the_remedy() {
    let url = ("webhook/url", "https://hooks.example.com/secret\n");
    let header = ("webhook-headers/X-Token", "t");
    let login = [("email/username", "u"), ("email/password", "p")];
    let missing = |field: &str, secret: &str, key: &str| {
        let what = format!("spec.notifications.{field}: Secret {secret} is not there, or has no key {key}");
        ("SecretMissing", format!("{what}: create it, and it is used within two minutes"))
    };
    for (files, wrong) in [
        (vec![url, header, login[0], login[1]], vec![]),
        (
            vec![],
            vec![
                missing("webhook.urlSecretRef", "hooks", "url"),
                missing("email.credentialsSecretRef", "smtp", "username"),
            ],
        ),
        (vec![url, login[0], login[1]], vec![missing("webhook.headersSecretRef", "headers", "at all")]),
        (vec![url, header, login[0]], vec![missing("email.credentialsSecretRef", "smtp", "password")]),
        (
            vec![("webhook/url", "hooks.example.com/secret"), header, login[0], login[1]],
            vec![(
                "SecretMalformed",
                "spec.notifications.webhook.urlSecretRef: key url of Secret hooks holds no http or https URL: correct it"
                    .to_owned(),
            )],
        ),
        (
            vec![url, ("webhook-headers/X Token", "t"), login[0], login[1]],
            vec![(
                "SecretMalformed",
                "spec.notifications.webhook.headersSecretRef: key X Token of Secret headers holds no HTTP header: correct it"
                    .to_owned(),
            )],
        ),
    ] {
        let root = mounted(&files);
        let read = Secrets::read(&both(), root.path());
        let said: Vec<_> = read.wrong.iter().map(|wrong| (wrong.reason(), wrong.to_string())).collect();
        assert_eq!(said, wrong);
        assert_eq!(read.config.webhook.is_some() && read.config.email.is_some(), wrong.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_comes_and_one_that_changes_are_seen_within_seconds() {
    let root = mounted(&[]);
    let wanted = settings(json!({"webhook": {"urlSecretRef": {"name": "hooks", "key": "url"}}}));
    let mut held = Secrets::read(&wanted, root.path());
    let hour = Duration::from_secs(3600);
    assert!(timeout(hour, held.changed(&wanted, root.path())).await.is_err(), "nothing came");
    for url in ["https://hooks.example.com/1", "https://hooks.example.com/2"] {
        let before = Instant::now();
        let come = async {
            sleep(Duration::from_secs(1)).await;
            fs::write(root.path().join("webhook/url"), url).unwrap();
        };
        let ((), ()) = tokio::join!(held.changed(&wanted, root.path()), come);
        assert!(before.elapsed() <= SECRETS_POLL, "{:?}", before.elapsed());
        held = Secrets::read(&wanted, root.path());
        assert_eq!(held.config.webhook.as_ref().map(|webhook| webhook.url.expose().as_str()), Some(url));
    }
}
