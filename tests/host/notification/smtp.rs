// SPDX-License-Identifier: Apache-2.0
//! E-mail, to aiosmtpd with STARTTLS and login.

use std::io::{BufRead as _, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use hyper2kvm::notification::{EmailConfig, Encryption, Event, NotificationConfig, Secret};
use hyper2kvm::queue::engine::outbox::Patience;

use super::post::{IMPATIENT, Post};
use super::recorder::Log;

/// Set in the process that does the work: trusted certificates come from the environment, which a test can't change
/// for itself.
const CHILD: &str = "HYPER2KVM_TEST_SMTP_PORT";

const PATIENCE: Patience = Patience { timeout: Duration::from_secs(5), ..IMPATIENT };

struct Server {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    port: u16,
    authority: PathBuf,
    _directory: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The directory of aiosmtpd; `None` where neither it nor pip is available.
fn aiosmtpd() -> Option<PathBuf> {
    static INSTALLED: OnceLock<Option<PathBuf>> = OnceLock::new();
    INSTALLED.get_or_init(install).clone()
}

fn install() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("aiosmtpd");
    if !target.join("aiosmtpd").is_dir() {
        let pip = Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"])
            .arg(&target)
            .arg("aiosmtpd==1.4.6")
            .env("PIP_ROOT_USER_ACTION", "ignore")
            .status();
        if !pip.is_ok_and(|status| status.success()) {
            return None;
        }
    }
    Some(target)
}

/// A certificate for `localhost`, and its authority.
fn certificates(directory: &Path) -> Option<()> {
    let openssl = |arguments: &[&str]| {
        let ran = Command::new("openssl").args(arguments).current_dir(directory).stderr(Stdio::null()).status();
        ran.is_ok_and(|status| status.success()).then_some(())
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    std::fs::write(directory.join("extensions"), "subjectAltName=DNS:localhost\n").ok()?;
    openssl(
        &[&["req", "-x509", "-subj", "/CN=test", "-days", "2", "-keyout", "ca.key", "-out", "ca.pem"], &key[..]]
            .concat(),
    )?;
    openssl(&[&["req", "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "request.pem"], &key[..]].concat())?;
    openssl(&[
        "x509",
        "-req",
        "-in",
        "request.pem",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        "extensions",
        "-out",
        "certificate.pem",
    ])
}

fn start() -> Option<Server> {
    let modules = aiosmtpd()?;
    let directory = tempfile::tempdir().expect("a temporary directory");
    certificates(directory.path())?;
    let mut child = Command::new("python3")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host/notification/smtp_server.py"))
        .args([directory.path().join("certificate.pem"), directory.path().join("key.pem")])
        .env("PYTHONPATH", modules)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let port = lines.next().and_then(Result::ok).and_then(|line| line.parse().ok());
    let Some(port) = port else {
        let _ = child.kill();
        panic!("the mail server did not start: {:?}", child.wait());
    };
    let authority = directory.path().join("ca.pem");
    Some(Server { child, lines, port, authority, _directory: directory })
}

fn config(port: u16, password: &str) -> NotificationConfig {
    hyper2kvm::telemetry::install_crypto();
    let email = EmailConfig {
        host: "localhost".to_owned(),
        port,
        encryption: Encryption::Starttls,
        from: "hyper2kvm <daemon@example.com>".parse().expect("an address"),
        to: vec!["a@example.com".parse().expect("an address"), "B <b@example.com>".parse().expect("an address")],
        username: Some("operator".to_owned()),
        password: Some(Secret::new(password.to_owned())),
        subject_prefix: "[hyper2kvm]".to_owned(),
    };
    NotificationConfig { email: Some(email), ..NotificationConfig::default() }
}

fn event() -> Event {
    Event::OutputFull { needed_bytes: 2, free_bytes: 1, output_path: "/out".to_owned(), at: Timestamp::UNIX_EPOCH }
}

/// Runs this test again in a process that trusts the server's certificate.
fn again(test: &str, server: &Server) {
    let status = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, server.port.to_string())
        .env("SSL_CERT_FILE", &server.authority)
        .env_remove("SSL_CERT_DIR")
        .status()
        .expect("this program runs");
    assert!(status.success(), "{test} failed as the mail's sender");
}

fn port_as_child() -> Option<u16> {
    std::env::var(CHILD).ok().map(|port| port.parse().expect("a port"))
}

fn send(config: NotificationConfig) {
    send_with(config, PATIENCE);
}

fn send_with(config: NotificationConfig, patience: Patience) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let post = Post::start(config, patience);
        post.announce(&event()).await;
        post.finish(Duration::from_secs(10)).await;
    });
}

fn or_skip() -> Option<Server> {
    let server = start();
    if server.is_none() {
        eprintln!("SKIPPED: no mail server: this test needs python3 with pip and openssl");
    }
    server
}

#[test]
fn a_mail_arrives_over_starttls_after_a_login() {
    if let Some(port) = port_as_child() {
        let log = Log::collect();
        send(config(port, "open sesame"));
        assert_eq!(log.lines("INFO"), ["Email sent: ⚠️ Output Volume Full"]);
        assert!(!log.text().contains("open sesame"));
        return;
    }
    let Some(mut server) = or_skip() else { return };
    again("notification::smtp::a_mail_arrives_over_starttls_after_a_login", &server);

    let line = server.lines.next().expect("a mail").expect("a line");
    let mut mail: Value = serde_json::from_str(&line).expect("JSON");
    let content = mail["content"].take();
    assert_eq!(
        mail,
        json!({
            "tls": true, "login": ["operator", "open sesame"], "content": null,
            "from": "daemon@example.com", "to": ["a@example.com", "b@example.com"],
        })
    );
    let (headers, body) = content.as_str().expect("text").split_once("\r\n\r\n").expect("headers and body");
    assert!(headers.contains("Subject: [hyper2kvm] =?utf-8?b?"), "{headers}");
    assert!(headers.contains("Date: ") && headers.contains("Message-ID: "), "{headers}");
    assert_eq!(
        body.replace("\r\n", "\n").trim_end(),
        "/out has 1 bytes free, 2 are needed: the queue holds\n\nevent: output_full\nneeded_bytes: 2\nfree_bytes: 1\n\
         output_path: /out\ntimestamp: 1970-01-01T00:00:00Z"
    );
}

#[test]
fn a_mail_that_greylisting_turns_away_is_sent_again() {
    if let Some(port) = port_as_child() {
        let log = Log::collect();
        let email = config(port, "open sesame").email.map(|mut email| {
            email.to.push("greylisted@example.com".parse().expect("an address"));
            email
        });
        send(NotificationConfig { email, ..NotificationConfig::default() });
        assert_eq!(log.lines("INFO"), ["Email sent: ⚠️ Output Volume Full"]);
        let turned_away = log.lines("WARN").first().cloned().unwrap_or_default();
        assert!(turned_away.starts_with("Failed to send email: transient error (451)"), "{turned_away}");
        return;
    }
    let Some(mut server) = or_skip() else { return };
    again("notification::smtp::a_mail_that_greylisting_turns_away_is_sent_again", &server);
    assert!(server.lines.next().is_some(), "the mail arrived");
}

#[test]
fn a_wrong_password_is_told_and_not_shown() {
    if let Some(port) = port_as_child() {
        let log = Log::collect();
        send(config(port, "hunter2"));
        let errors = log.lines("ERROR");
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].starts_with("Failed to send email: permanent error (535)"), "{errors:?}");
        assert!(!log.text().contains("hunter2"));
        return;
    }
    let Some(server) = or_skip() else { return };
    again("notification::smtp::a_wrong_password_is_told_and_not_shown", &server);
}

#[test]
fn a_server_of_unknown_identity_gets_neither_login_nor_mail() {
    let Some(mut server) = or_skip() else { return };
    let log = Log::collect();
    let patience = Patience { give_up: Duration::from_millis(300), ..PATIENCE };
    send_with(config(server.port, "open sesame"), patience);
    let errors = log.lines("ERROR");
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].starts_with("Failed to send email: "), "{errors:?}");
    server.child.kill().expect("it runs");
    assert!(server.lines.next().is_none(), "no mail arrived");
}

#[test]
fn a_mail_server_that_hangs_is_given_up_for_now() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("an address").port();
    let log = Log::collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let patience = Patience { timeout: Duration::from_millis(200), ..PATIENCE };
        let sender = Post::start(config(port, "x"), patience);
        sender.announce(&event()).await;
        sender.finish(Duration::from_secs(2)).await;
    });
    let first = log.lines("WARN").first().cloned().unwrap_or_default();
    assert!(first.starts_with("Failed to send email: timed out; trying again"), "{first}");
}
