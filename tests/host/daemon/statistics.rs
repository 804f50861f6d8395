// SPDX-License-Identifier: Apache-2.0
//! Statistics while the daemon works: the socket always answers, and the file never gets old.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::daemon::{Site, disk};

/// Delay of the second and third file after the first: longer than any interval of the daemon.
const LATER: Duration = Duration::from_secs(60);

/// Greatest age of stats.json: its interval, and what a busy machine takes to write it.
const OLDEST: Duration = Duration::from_secs(62);

#[test]
fn three_images_one_a_minute_earlier_and_the_statistics_answer_and_are_fresh_throughout() {
    let site = Site::new("");
    let daemon = site.start();
    let file = site.output().join(".daemon/stats.json");
    daemon.until("the file is there", || file.exists());
    let look = || {
        let (asked, stats) = (Instant::now(), daemon.stats());
        assert!(asked.elapsed() < Duration::from_secs(2), "an answer took {:?}", asked.elapsed());
        let age = fs::metadata(&file).unwrap().modified().unwrap().elapsed().unwrap_or_default();
        assert!(age < OLDEST, "stats.json is {age:?} old");
        let content: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        assert!(content["last_updated"].is_string(), "{content}");
        stats
    };
    site.drop_file("first.raw", &disk(0));
    let dropped = Instant::now();
    daemon.until("a minute goes by", || {
        std::thread::sleep(Duration::from_millis(200));
        look();
        dropped.elapsed() >= LATER
    });
    assert_eq!(look()["total_processed"], 1);
    let idle = fs::metadata(&file).unwrap().modified().unwrap();
    site.drop_file("second.raw", &disk(1));
    site.drop_file("third.raw", &disk(2));
    daemon.until("all three are converted", || look()["total_processed"] == 3);
    daemon.until("the file knows", || {
        let content: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        content["total_processed"] == 3
    });
    assert!(fs::metadata(&file).unwrap().modified().unwrap() > idle);
    assert_eq!(site.archived(), ["first.raw", "second.raw", "third.raw"]);
}
