// SPDX-License-Identifier: Apache-2.0
//! The daemon's page in a real browser.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::daemon::{SOON, Site, until};

/// A browser without a window, driven over `WebDriver` (<https://www.w3.org/TR/webdriver2/>).
struct Browser {
    driver: Child,
    base: String,
    client: reqwest::Client,
}

impl Browser {
    /// Chromium's driver, or `None` and a line where this machine has none.
    async fn find() -> Option<Self> {
        let port = free_port();
        let mut driver = Command::new("chromedriver");
        driver.arg(format!("--port={port}")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let Ok(driver) = driver.spawn() else {
            eprintln!("left out: the page in a browser: no chromedriver (Debian: chromium-driver)");
            return None;
        };
        hyper2kvm::telemetry::install_crypto();
        let browser = Self { driver, base: format!("http://127.0.0.1:{port}"), client: reqwest::Client::new() };
        let started = tokio::time::Instant::now();
        while browser.client.get(format!("{}/status", browser.base)).send().await.is_err() {
            assert!(started.elapsed() < SOON, "chromedriver does not answer");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Some(browser)
    }

    /// Sends a command, and returns its value.
    async fn tell(&self, path: &str, body: Value) -> Value {
        let answer = self.client.post(format!("{}/session{path}", self.base)).json(&body).send().await.unwrap();
        let mut answer: Value = answer.json().await.unwrap();
        assert!(answer["value"]["error"].is_null(), "{path}: {answer}");
        answer["value"].take()
    }

    /// A window of this size in which a page is loaded.
    async fn open(&self, url: &str, size: (u32, u32), scripts: bool) -> Window<'_> {
        // Root has no namespaces of a user's to build Chromium's sandbox from, and the page is ours.
        let arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"];
        let preferences = json!({"profile.managed_default_content_settings.javascript": if scripts { 1 } else { 2 }});
        let options = json!({"args": arguments, "prefs": preferences});
        let wish = json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}});
        let session = self.tell("", wish).await["sessionId"].as_str().unwrap().to_owned();
        let window = Window { browser: self, session };
        window.tell("window/rect", json!({"width": size.0, "height": size.1})).await;
        window.tell("url", json!({ "url": url })).await;
        window
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

struct Window<'a> {
    browser: &'a Browser,
    session: String,
}

impl Window<'_> {
    async fn tell(&self, command: &str, body: Value) -> Value {
        self.browser.tell(&format!("/{}/{command}", self.session), body).await
    }

    /// The value of an expression in the page; works where the page's own scripts don't run, too.
    async fn value(&self, expression: &str) -> Value {
        self.tell("execute/sync", json!({"script": format!("return {expression}"), "args": []})).await
    }

    async fn until(&self, what: &str, expression: &str) {
        let started = tokio::time::Instant::now();
        while self.value(expression).await != json!(true) {
            assert!(started.elapsed() < SOON, "{what}: {}", self.value("document.body.innerHTML").await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn close(self) {
        let url = format!("{}/session/{}", self.browser.base, self.session);
        self.browser.client.delete(url).send().await.unwrap();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn a_browser_shows_what_was_converted_and_what_failed_with_and_without_scripts() {
    let Some(browser) = Browser::find().await else { return };
    let mut site = Site::new("");
    let port = free_port();
    site.listen = Some(port);
    let daemon = site.start();
    let url = format!("http://127.0.0.1:{port}/");
    let live = browser.open(&url, (390, 1400), true).await;
    live.until("the page is live", "document.getElementById('live').textContent == 'Updated live.'").await;
    live.value("document.getElementById('hours').open = true").await;

    site.drop_file("good.raw", &vec![0; 65536]);
    site.drop_file("<img src=x onerror=alert(1)>.vmdk", b"this is no disk at all");
    until("both have ended", || {
        let stats = daemon.stats();
        stats["total_processed"] == 1 && stats["total_failed"] == 1
    });
    live.until("both are shown", "document.body.innerText.includes('Converted 1, failed 1')").await;
    let plain = browser.open(&url, (1280, 1400), false).await;
    for window in [&live, &plain] {
        let text = window.value("document.body.innerText").await.as_str().unwrap().to_owned();
        for shown in ["Converted 1, failed 1", "<img src=x onerror=alert(1)>.vmdk", "1 conversions of 64 KiB"] {
            assert!(text.contains(shown), "{shown}: {text}");
        }
        let found = window.value("document.querySelectorAll('img, script:not([src])').length").await;
        assert_eq!(found, 0, "text of a file became a part of the page");
        let is_wider = "document.documentElement.scrollWidth > document.documentElement.clientWidth";
        assert_eq!(window.value(is_wider).await, json!(false), "it is wider than its window");
        // What a check of accessibility asks first: a language, one main part, headings in order, columns with a scope,
        // and a name of each picture and bar.
        assert_eq!(window.value("document.documentElement.lang").await, "en");
        assert_eq!(window.value("document.querySelectorAll('main').length").await, 1);
        let unnamed = "document.querySelectorAll('svg:not([aria-label]), progress:not([aria-label]), th:not([scope])')";
        assert_eq!(window.value(&format!("{unnamed}.length")).await, 0);
    }
    assert_eq!(live.value("document.getElementById('hours').open").await, json!(true), "an update closes what is open");
    assert_eq!(plain.value("document.getElementById('live').textContent").await, "As of the moment it was loaded.");

    if let Some(kept) = std::env::var_os("HYPER2KVM_PICTURE") {
        live.value("document.getElementById('hours').open = false").await;
        let picture = live.browser.client.get(format!("{}/session/{}/screenshot", browser.base, live.session));
        let picture: Value = picture.send().await.unwrap().json().await.unwrap();
        std::fs::write(kept, picture["value"].as_str().unwrap()).unwrap();
    }
    drop(daemon);
    live.until("an end is told", "document.getElementById('live').textContent.startsWith('No answer')").await;
    plain.close().await;
    live.close().await;
}
